"""An ONNX file as it will be asked, by ONNX Runtime on the CPU; nothing here needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnxruntime


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """The graph on the CPU. ONNX Runtime is needed where graphs are made, not where networks are trained."""
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def decisive(path: Path, photos: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The photos, those with the clearest ranking first: near ties would fail a check over the wire for nothing."""
    probs = open_session(path).run(["probs"], {"image": photos})[0]
    clearance = (probs[:, :-1] - probs[:, 1:]).min(axis=1) if probs.shape[1] > 1 else np.zeros(len(probs))
    return photos[np.argsort(-clearance, kind="stable")]
