"""Atomic checkpoint files, tied by a key to one data version and one configuration, and written beside the steps."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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


class Writer:
    """Writes the checkpoints of a training to one file, on a thread of its own, while the next steps run.

    Leaving the block waits for the last one.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.thread = path, ThreadPoolExecutor(1, "checkpoint")
        self.pending: Future[None] | None = None

    def save(self, content: dict[str, Any]) -> None:
        """Copies the content, and writes it soon.

        Raises:
            OSError: the checkpoint before this one could not be written.
        """
        self.wait()
        self.pending = self.thread.submit(save, self.path, _copied(content))

    def wait(self) -> None:
        """Returns when the last checkpoint is on the disk; raises the OSError that prevented it."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.thread.shutdown()
        if kind is None:
            self.wait()


def _copied(value: Any) -> Any:
    """Plain containers with copies of their tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value
