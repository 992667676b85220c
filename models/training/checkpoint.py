"""Atomic checkpoint files, tied by a key to one data version and one configuration."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from durable import replacing
from models.errors import CheckpointMismatch


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes the file atomically."""
    with replacing(path) as file:
        torch.save(content, file)


def load(path: Path, *, key: str = "") -> dict[str, Any]:
    """Content of a file written by `save`.

    The zip checksums are verified first: torch writes them but never reads them, so a flipped bit would silently change
    a weight.

    Raises:
        CheckpointMismatch: the file is damaged, or was written under another key (data version and configuration).
    """
    try:
        with zipfile.ZipFile(path) as parts:
            if broken := parts.testzip():
                raise zipfile.BadZipFile(broken)
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds of exceptions for a damaged file
        raise CheckpointMismatch(
            f"{path} cannot be read ({type(error).__name__}); delete it to start this step again"
        ) from None
    if key and content.get("key") != key:
        raise CheckpointMismatch(
            f"{path} was written for {content.get('key', 'no training')}, not for {key}: the data or the recipe differ; "
            "delete it to start again"
        )
    return content
