"""Files of weights as people have them: what kind of file it is, and where in it the tensors of a backbone lie.

A file may hold the tensors themselves, or a checkpoint of a training around them, under any key and with any prefix
(`module.`, `_orig_mod.`, `model.backbone.`). So no list of names is kept: the part of the file and the prefix under which
most tensors of the backbone are found, with their shapes, are those of the backbone. Nothing is unpickled that could run
code.
"""

from __future__ import annotations

import argparse
import collections
import difflib
import pathlib
import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.errors import WeightsMismatch

HEAD_BYTES = 512
DEPTH = 3  # of the tables of a checkpoint that are searched
NAMED = 6  # keys that a message names
TRIED = 80  # backbones of the same family that are compared with a file that does not fit
AVERAGED = ("ema", "teacher")  # of two copies of the weights, the averaged one is taken
GIVE = "give a .safetensors file, or one of torch.save(network.state_dict(), FILE)"
# Harmless classes that checkpoints hold beside the weights, such as the arguments of the training.
HARMLESS: list[Any] = [argparse.Namespace, pathlib.PosixPath, collections.defaultdict, np.dtype, np.float64(0).__reduce__()[0],
            *(type(np.dtype(name)) for name in ("float32", "float64", "int32", "int64", "bool"))]  # fmt: skip
KINDS = {  # by the first bytes of a file
    b"version https://git-lfs": "a pointer of Git LFS and not the file itself; fetch it with `git lfs pull`",
    b"<": "a web page and not weights, because its download failed; download it again",
    b"\x1f\x8b": "a gzip archive; unpack it, and give the file of weights in it",
    b"\x89HDF": "an HDF5 file, as Keras writes it, and not weights of torch; " + GIVE,
    b"\x08": "an ONNX graph; give the weights of torch from which it was exported",
}


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


def load_weights(backbone: nn.Module, path: Path, *, name: str) -> None:
    """Loads the weights of a backbone from a file; its own classifier, and whatever lies beside the backbone, is left.

    Raises:
        WeightsMismatch: the file cannot be read or does not fit; the message says what it holds.
    """
    content = read(path)
    own = backbone.state_dict()
    parts = list(tables(content))
    if not parts:
        held = f"a {type(content).__name__}"
        if isinstance(content, Mapping):
            held = f"no tensors, but the keys {', '.join(map(str, list(content)[:NAMED])) or '(none)'}"
        raise WeightsMismatch(f"members.weights: {path} holds {held}; {GIVE}")
    best = max((fit(part, own) for part in parts), key=lambda each: (each.fitting, is_averaged(each.part)))
    given = best.named()
    counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}
    missing = [k for k, v in own.items() if k not in counters and (k not in given or given[k].shape != v.shape)]
    unknown = [key for key in given if key not in own and key.split(".")[0] not in classifier_of(backbone)]
    if missing or unknown:
        raise WeightsMismatch(f"members.weights: {path} does not fit {name}: {misfit(best, own, missing, unknown)}; "
                              f"{way_out(path, content, best, name)}")  # fmt: skip
    backbone.load_state_dict(counters | {key: given[key] for key in own if key in given})


def read(path: Path) -> Any:
    """Content of a file of weights: tensors by name, or a checkpoint that holds them somewhere.

    Raises:
        WeightsMismatch: there is no such file, or it is of another kind; the message says of which.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise WeightsMismatch(
            f"members.weights: {path} {found}; correct the path, or omit it to start from random weights"
        )
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if problem := kind_of(path, head):
        raise WeightsMismatch(f"members.weights: {path} is {problem}")
    try:
        if head[8:9] == b"{":
            return load_file(path)
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickles of another protocol
            return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        if name := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise WeightsMismatch(
                f"members.weights: {path} holds a pickled object ({name[1]}), which could run any code and is not opened; "
                f"where you trust it, load it yourself and {GIVE}"
            ) from None
        raise damaged(path, error) from None
    except Exception as error:  # safetensors and torch have no common exception for a damaged file
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception) -> WeightsMismatch:
    """The error about a file that begins like weights and cannot be read."""
    return WeightsMismatch(
        f"members.weights: {path} cannot be read ({type(error).__name__}): it is damaged, cut off at "
        f"{path.stat().st_size} bytes, or not a file of weights; copy or download it again, or {GIVE}"
    )


def kind_of(path: Path, head: bytes) -> str:
    """The reason why a file of this kind cannot hold weights; "" if it may."""
    if not head:
        return "empty; copy or download it again"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return ""  # safetensors, whatever the length of its header begins with
    for begin, kind in KINDS.items():
        if head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(begin):
            return kind
    if not head.startswith(b"PK"):
        return ""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return f"cut off at {path.stat().st_size} bytes; copy or download it again"
    inner = {name.split("/", 1)[-1] for name in names}
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return "a TorchScript module; save its weights with torch.save(torch.jit.load(FILE).state_dict(), OTHER)"
    if "data.pkl" not in inner:
        return f"a zip archive of {', '.join(names[:NAMED])}; unpack it, and give the file of weights in it"
    return ""


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


def classifier_of(backbone: nn.Module) -> set[str]:
    """First parts of the names of the backbone's own classifier in a file, such as fc or head."""
    names = backbone.pretrained_cfg["classifier"]  # type: ignore[index]  # timm gives one name or several
    return {name.split(".")[0] for name in ([names] if isinstance(names, str) else names or ())}


def misfit(found: Found, own: Mapping[str, Tensor], missing: list[str], unknown: list[str]) -> str:
    """A text about the content of a file, and the first tensor that does not fit."""
    given = found.named()
    prefix = f" with prefix {found.prefix!r}" if found.prefix else ""
    said = f"it holds {found}; {found.fitting} of the backbone's {len(own)} are among them{prefix}"
    if not missing:
        return f"{said}, and {len(unknown)} that it does not have, first {unknown[0]}"
    first, shape = missing[0], tuple(own[missing[0]].shape)
    problem = f"has shape {tuple(given[first].shape)} instead of {shape}" if first in given else f"{shape} is missing"
    return f"{said}, and {len(missing)} are not, first {first}, which {problem}"


def way_out(path: Path, content: Any, found: Found, name: str) -> str:
    """A remedy for weights that do not fit, with the backbone that they may belong to."""
    likely = likely_backbone(path, content, found, name)
    other = f" (these look like {likely})" if likely else ""
    return f"give weights of {name}, or set members.backbone to the backbone of these weights{other}"


def likely_backbone(path: Path, content: Any, found: Found, name: str) -> str:
    """The timm name that a checkpoint states, or of a backbone of the same family that fits, or like the file's; or ""."""
    stated = content.get("arch") if isinstance(content, Mapping) else None
    if isinstance(stated, str) and timm.is_model(stated):
        return stated
    family, known = re.split(r"[\d_.]", name)[0], timm.list_models()
    near = difflib.get_close_matches(path.stem.split(".")[0].split("-")[0], known, n=NAMED)
    same = [each for each in known if each.startswith(family)]
    for each in dict.fromkeys([*near, *difflib.get_close_matches(name, same, n=TRIED, cutoff=0)]):
        if _fits(each, found):
            return each
    return near[0] if near and near[0] != name else ""


def _fits(name: str, found: Found) -> bool:
    """True if a backbone has these tensors, and no others; it is built without memory for its own."""
    try:
        with torch.device("meta"):
            backbone = timm.create_model(name, pretrained=False, num_classes=0)
    except Exception:  # timm's models raise all kinds of exceptions
        return False
    own = backbone.state_dict()
    best = fit(found, own)
    return best.fitting == len(own) and not {
        key for key in best.named() if key not in own and key.split(".")[0] not in classifier_of(backbone)
    }
