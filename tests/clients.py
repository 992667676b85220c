"""Helpers for tests of the client: a running server, and a client that records its calls."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serving import Access, Recognizer
from serving.client.conversation import Pause
from serving.repository.repository import ModelRepository
from serving.server.server import LocalServer, RunningServer


@dataclass
class Upstream:
    """Running server with version 1."""

    repository: ModelRepository
    server: LocalServer
    running: RunningServer

    @property
    def access(self) -> Access:
        """Access with both tokens."""
        return self.running.access

    @property
    def graph(self) -> Path:
        """Path of the current model's graph."""
        return self.repository.path(1) / "model.onnx"


class RecordingRecognizer(Recognizer):
    """Recognizer that records its calls, its pauses, and the largest number of batches in progress at once."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.in_progress = self.max_in_progress = self.pauses = 0
        self.calls: list[str] = []
        self.lock = threading.Lock()
        super().__init__(*arguments, **options)

    def _answer(self, batch: Any, embedding: bool, priority: int) -> Any:
        with self.lock:
            self.in_progress += 1
            self.max_in_progress = max(self.max_in_progress, self.in_progress)
        try:
            return super()._answer(batch, embedding, priority)
        finally:
            with self.lock:
                self.in_progress -= 1

    def _act(self, step: Any) -> Any:
        if isinstance(step, Pause):
            self.pauses += 1
        else:
            self.calls.append(step.name)
        return super()._act(step)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """PNG file of pixels (H, W, 3)."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """JPEG file of pixels (H, W, 3)."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    return file.getvalue()
