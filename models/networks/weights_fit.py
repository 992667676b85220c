"""Comparison of the tensors of a file with those of a backbone: where they lie, in which names and shapes, what differs.

A file may hold the tensors themselves, or a checkpoint of a training around them, under any key and with any prefix
(`module.`, `_orig_mod.`, `model.backbone.`). So no list of names is kept: the part of the file and the prefix under which
most tensors of the backbone are found, with their shapes, are those of the backbone. timm's own functions then translate the
names of the original authors and resize position embeddings.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

NAMED = 6  # names that a message lists
DEPTH = 3  # of the tables of a checkpoint that are searched
AVERAGED = ("ema", "teacher")  # of two copies of the weights, the averaged one is taken
COUNTER = "num_batches_tracked"  # files of old releases lack these of batch norms
LAST_NORMS = ("norm.", "fc_norm.", "head.norm.")  # what a use without the authors' own pooling may add


@dataclass(frozen=True)
class Found:
    """Tensors of a file that may be those of a backbone.

    part: keys of the checkpoint that lead to them; "" for the whole file.
    prefix: beginning of their names that the backbone does not have.
    """

    part: str
    tensors: Mapping[str, Tensor]
    prefix: str = ""
    fitting: int = 0  # tensors that the backbone has under the same name and shape

    def named(self) -> dict[str, Tensor]:
        """The tensors with the prefix, by their names without it."""
        return {key[len(self.prefix) :]: each for key, each in self.tensors.items() if key.startswith(self.prefix)}

    def __str__(self) -> str:
        first = [f"{key} {tuple(each.shape)}" for key, each in list(self.tensors.items())[:NAMED]]
        where = f" under {self.part}" if self.part else ""
        return f"{len(self.tensors)} tensors{where}, first {', '.join(first)}"


@dataclass(frozen=True)
class Comparison:
    """Tensors of a file, in the names and shapes of a backbone, beside those that the backbone has.

    missing: names that the file lacks, or has in another shape.
    foreign: names in the file that belong to parts of the backbone and are not in it, as those of a deeper one.
    left_out: names in the file that belong to no part of the backbone, such as a classifier.
    initial: names that the file lacks and that keep timm's initial values.
    resized: names whose shape timm changed.
    """

    tensors: Mapping[str, Tensor]
    missing: tuple[str, ...]
    foreign: tuple[str, ...]
    left_out: tuple[str, ...]
    initial: tuple[str, ...]
    resized: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """True if the backbone can start from the tensors."""
        return not self.missing and not self.foreign

    def __str__(self) -> str:
        parts = (
            ("resized", self.resized),
            ("not in the file, initial values", self.initial),
            ("left out", self.left_out),
        )
        return "; ".join(f"{what}: {listed(names)}" for what, names in parts if names)


def tables(content: Any, part: str = "", depth: int = 0) -> Iterator[Found]:
    """Every table of tensors by name in a checkpoint, with the keys that lead to it."""
    if not isinstance(content, Mapping) or depth > DEPTH:
        return
    if own := {str(key): value for key, value in content.items() if isinstance(value, Tensor)}:
        yield Found(part, own)
    for key, value in content.items():
        yield from tables(value, f"{part}.{key}" if part else str(key), depth + 1)


def fit(found: Found, own: Mapping[str, Tensor]) -> Found:
    """The tensors with the prefix under which most of those of a backbone, `own`, are found."""
    votes: Counter[str] = Counter()
    for key, tensor in found.tensors.items():
        starts = [0, *(match.end() for match in re.finditer(r"\.", key))]
        for start in starts:
            if (wanted := own.get(key[start:])) is not None and wanted.shape == tensor.shape:
                votes[key[:start]] += 1
    prefix, fitting = votes.most_common(1)[0] if votes else ("", 0)
    return Found(found.part, found.tensors, prefix, fitting)


def is_averaged(part: str) -> bool:
    """True if the keys that lead to a table say that it holds averaged weights."""
    return any(name in part.lower() for name in AVERAGED)


def has_other_sizes(found: Found, backbone: nn.Module) -> bool:
    """True if a tensor has the name of one of the backbone's and another shape."""
    own, given = backbone.state_dict(), found.named()
    return any(key in own and own[key].shape != each.shape for key, each in given.items())


def compare(found: Found, backbone: nn.Module) -> Comparison:
    """The tensors of a part of a file in the names and shapes of a backbone."""
    own, given = backbone.state_dict(), found.named()
    tensors = translated(given, backbone)
    lacks = [key for key, each in own.items() if key not in tensors or tensors[key].shape != each.shape]
    initial = tuple(key for key in lacks if key not in tensors and is_optional(key))
    others = [key for key in tensors if key not in own]
    foreign = tuple(key for key in others if is_foreign(key, own, backbone))
    return Comparison(
        tensors={key: each for key, each in tensors.items() if key in own},
        missing=tuple(key for key in lacks if key not in initial),
        foreign=foreign,
        left_out=tuple(key for key in others if key not in foreign),
        initial=tuple(key for key in initial if not key.endswith(COUNTER)),
        resized=tuple(key for key, each in given.items() if key in tensors and tensors[key].shape != each.shape),
    )


def translated(given: Mapping[str, Tensor], backbone: nn.Module) -> Mapping[str, Tensor]:
    """The tensors in timm's names and at the backbone's size, by the function with which timm reads the authors' files."""
    module = sys.modules[type(backbone).__module__]
    translate = getattr(module, "checkpoint_filter_fn", None)
    try:
        made: Mapping[str, Tensor] = translate(dict(given), backbone) if translate else given
    except Exception:  # on files of another family, which are then compared as they are
        return given
    return made


def is_optional(key: str) -> bool:
    """True if a backbone can start without this tensor: a counter, or the norm before the classifier."""
    return key.endswith(COUNTER) or key.startswith(LAST_NORMS)


def is_foreign(key: str, own: Mapping[str, Tensor], backbone: nn.Module) -> bool:
    """True if a tensor belongs to a part that the backbone has, but not to the backbone."""
    first = key.split(".")[0]
    return first not in classifier_of(backbone) and any(name.split(".")[0] == first for name in own)


def classifier_of(backbone: nn.Module) -> set[str]:
    """First parts of the names of the backbone's own classifier in a file, such as fc or head."""
    names = backbone.pretrained_cfg["classifier"]  # type: ignore[index]  # timm gives one name or several
    return {name.split(".")[0] for name in ([names] if isinstance(names, str) else names or ())}


def listed(names: tuple[str, ...]) -> str:
    """The names, the first few of many."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
