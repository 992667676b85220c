"""Backbones that a file of weights fits, for the message about one that it does not fit."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
import torch

from models.networks.weights_fit import Found, compare, fit

NEAR = 6  # names of backbones that are near that of the file
TRIED = 24  # backbones of the same family that are compared with the file
NAMED = 3  # of those that fit


def way_out(path: Path, content: Any, found: Found, name: str) -> str:
    """A remedy for weights that do not fit `name`, with the backbones that they may belong to."""
    likely = likely_backbones(path, content, found, name)
    other = f" (these fit {', '.join(likely)})" if likely else ""
    return f"give weights of {name}, or set members.backbone to the backbone of these weights{other}"


def likely_backbones(path: Path, content: Any, found: Found, name: str) -> list[str]:
    """Up to three names of timm's whose backbones have these tensors and no others, the likeliest first."""
    stated = content.get("arch") if isinstance(content, Mapping) else None
    if isinstance(stated, str) and timm.is_model(stated):
        return [stated]
    candidates = dict.fromkeys(_candidates(path, name))
    return list(itertools.islice((each for each in candidates if fits(each, found)), NAMED))


def _candidates(path: Path, name: str) -> Iterator[str]:
    """Names near that of the file, then those of the same family, then those near the name of the recipe."""
    known = timm.list_models()
    yield from difflib.get_close_matches(re.split(r"[.-]", path.stem)[0], known, n=NEAR)
    arch = name.split(".")[0]
    family = re.split(r"[\d_]", arch)[0]
    same = [each for each in known if each.startswith(family)]
    yield from difflib.get_close_matches(arch, same, n=TRIED, cutoff=0)


def fits(name: str, found: Found) -> bool:
    """True if a backbone has these tensors, and no others; it is built without memory for its own."""
    try:
        with torch.device("meta"):
            backbone = timm.create_model(name, pretrained=False, num_classes=0)
        return compare(fit(found, backbone.state_dict()), backbone).fits
    except Exception:  # timm's models raise all kinds of exceptions
        return False
