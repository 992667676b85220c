"""An ONNX file as it will be asked, by ONNX Runtime on the CPU; nothing here needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from contract import ACCEPTED, INPUT

if TYPE_CHECKING:
    import onnxruntime


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """The graph on the CPU. ONNX Runtime is needed where graphs are made, not where networks are trained."""
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def decisive(path: Path, photos: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The photos, the clearest ranking and acceptance first: near ties would fail a check over the wire for nothing."""
    probs, known = open_session(path).run(["probs", "known"], {INPUT: photos})
    clearance = abs(known[:, 0] - ACCEPTED)
    if probs.shape[1] > 1:
        clearance = np.minimum(clearance, (probs[:, :-1] - probs[:, 1:]).min(axis=1))
    return photos[np.argsort(-clearance, kind="stable")]
