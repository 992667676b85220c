"""Files of weights as people have them: what kind of file it is, and what it holds. Nothing is unpickled that could run code."""

from __future__ import annotations

import argparse
import collections
import pathlib
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from models.errors import WeightsMismatch

HEAD_BYTES = 512
NAMED = 6  # names that a message lists
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


def read(path: Path) -> Any:
    """Content of a file of weights: tensors by name, or a checkpoint that holds them somewhere.

    Raises:
        WeightsMismatch: there is no such file, or it is of another kind; the message says of which.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise WeightsMismatch(
            f"members.weights: {path} {found}; correct the path, or write pretrained for timm's own weights of the backbone"
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
