"""ONNX Runtime sessions, on the CPU unless asked otherwise; nothing here needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from contract import ACCEPTED, INPUT

if TYPE_CHECKING:
    import onnxruntime


CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def open_session(path: Path, *, gpu: int | None = None) -> onnxruntime.InferenceSession:
    """Session of a graph on the CPU, or on a GPU; if ONNX Runtime cannot use that, it warns and takes the CPU."""
    import onnxruntime  # imported here, as trainings run without it

    settings = {"device_id": str(gpu), "use_tf32": "0"}  # with all bits of float32, as on the CPU
    return onnxruntime.InferenceSession(path, providers=[*([(CUDA, settings)] if gpu is not None else []), CPU])


def decisive(path: Path, photos: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The photos, those with the clearest ranking and acceptance first.

    Golden answers should not be near ties, where rounding on the server may change an answer.
    """
    probs, known = open_session(path).run(["probs", "known"], {INPUT: photos})
    clearance = abs(known[:, 0] - ACCEPTED)
    if probs.shape[1] > 1:
        clearance = np.minimum(clearance, (probs[:, :-1] - probs[:, 1:]).min(axis=1))
    return photos[np.argsort(-clearance, kind="stable")]
