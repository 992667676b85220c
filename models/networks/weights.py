"""Loading of the weights that a backbone starts from, from a file as people have them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from models.errors import WeightsMismatch
from models.networks.similar import way_out
from models.networks.weights_file import GIVE, read
from models.networks.weights_fit import NAMED, Comparison, Found, compare, fit, has_other_sizes, is_averaged, tables

log = logging.getLogger(__name__)


def load_weights(
    backbone: nn.Module, path: Path, *, name: str, resize: Callable[[], object] = lambda: None
) -> Comparison:
    """Loads the weights of a backbone from a file, and returns what was resized, left out or not in the file.

    resize: brings the backbone to the size of its photos. It is called before tensors of another size are loaded, so that
        they are resized once, from the file's size to that of the photos.

    Raises:
        WeightsMismatch: the file cannot be read or does not fit; the message says what it holds.
    """
    content = read(path)
    best = best_part(content, backbone.state_dict(), path)
    if has_other_sizes(best, backbone):
        resize()
    found = compare(best, backbone)
    if not found.fits:
        raise WeightsMismatch(f"members.weights: {path} does not fit {name}: {misfit(best, backbone, found)}; "
                              f"{way_out(path, content, best, name)}")  # fmt: skip
    backbone.load_state_dict({**backbone.state_dict(), **found.tensors})
    if report := str(found):
        log.info("weights of %s from %s: %s", name, path.name, report)
    return found


def best_part(content: Any, own: Mapping[str, Tensor], path: Path) -> Found:
    """The part of a file that has most tensors of a backbone, `own`."""
    parts = list(tables(content))
    if not parts:
        held = f"a {type(content).__name__}"
        if isinstance(content, Mapping):
            held = f"no tensors, but the keys {', '.join(map(str, list(content)[:NAMED])) or '(none)'}"
        raise WeightsMismatch(f"members.weights: {path} holds {held}; {GIVE}")
    return max((fit(part, own) for part in parts), key=lambda each: (each.fitting, is_averaged(each.part)))


def misfit(found: Found, backbone: nn.Module, compared: Comparison) -> str:
    """A text about the content of a file, and the first tensor that does not fit."""
    own, given = backbone.state_dict(), compared.tensors
    prefix = f" with prefix {found.prefix!r}" if found.prefix else ""
    said = f"it holds {found}; {found.fitting} of the backbone's {len(own)} are among them{prefix}"
    if not compared.missing:
        return f"{said}, and {len(compared.foreign)} that it does not have, first {compared.foreign[0]}"
    first = compared.missing[0]
    shape = tuple(own[first].shape)
    problem = f"has shape {tuple(given[first].shape)} instead of {shape}" if first in given else f"{shape} is missing"
    return f"{said}, and {len(compared.missing)} are not, first {first}, which {problem}"
