"""Files of weights that are whole or absent, and that belong to one data version and one configuration."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from models.errors import CheckpointMismatch


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside the path, fsynced and renamed to it in the end, so that a kill leaves the former file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with fresh.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes the whole file or none of it."""
    with replacing(path) as file:
        torch.save(content, file)


def load(path: Path, *, key: str = "") -> dict[str, Any]:
    """The content of a file written by `save`.

    Raises:
        CheckpointMismatch: it is broken, or was made under another key (data version and configuration).
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds for a broken file
        raise CheckpointMismatch(
            f"{path} cannot be read ({type(error).__name__}); delete it to start this stage anew"
        ) from None
    if key and content.get("key") != key:
        raise CheckpointMismatch(
            f"{path} was made for {content.get('key', 'no training')}, not for {key}: other data or another recipe; "
            "delete it to start anew"
        )
    return content
