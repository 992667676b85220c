"""Files of weights that are whole or absent, and that belong to one data version and one configuration."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from durable import replacing
from models.errors import CheckpointMismatch


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes the whole file or none of it."""
    with replacing(path) as file:
        torch.save(content, file)


def load(path: Path, *, key: str = "") -> dict[str, Any]:
    """The content of a file written by `save`.

    The zip's own checksums are looked at first: torch writes and never reads them, and a flipped bit would be another weight.

    Raises:
        CheckpointMismatch: it is broken, or was made under another key (data version and configuration).
    """
    try:
        with zipfile.ZipFile(path) as parts:
            if broken := parts.testzip():
                raise zipfile.BadZipFile(broken)
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
