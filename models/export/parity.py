"""Parity check: compares the answers of the ONNX file and of the torch module, on real photos in several batch sizes."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from contract import ACCEPTED, INPUT, OUTPUTS
from models.errors import ParityError
from models.export.graph import DeployGraph
from models.export.session import open_session

if TYPE_CHECKING:
    import onnxruntime

TOLERANCE = 1e-5  # of a probability, float32, as at the server; an Intel Xeon came to 1.2e-6
GPU_TOLERANCE = 1e-3  # of a probability, between GPU and CPU, whose convolutions sum in another order
ROUNDINGS = 4  # tolerance as a multiple of torch's own float32 error, if that is larger: deep networks round more
BATCHES = (1, 2, 7)


@dataclass(frozen=True)
class Parity:
    """Largest differences over all photos and batch sizes; rounding: those between torch in float32 and in float64."""

    photos: int
    different_ids: int
    probability: float
    known: float
    embedding: float
    rounding: float
    known_rounding: float

    @property
    def allowed(self) -> float:
        """Largest difference of a probability that rounding can explain."""
        return max(TOLERANCE, ROUNDINGS * self.rounding)

    @property
    def known_allowed(self) -> float:
        """Largest difference of `known` that rounding can explain; its slope amplifies rounding errors of the score."""
        return max(TOLERANCE, ROUNDINGS * self.known_rounding)


def measure_parity(graph: DeployGraph, path: Path, photos: NDArray[np.uint8]) -> Parity:
    """Differences between the graph and its ONNX file on photos (N, S, S, 3), in batches of 1, 2 and 7."""
    session = open_session(path)
    graph = graph.cpu().eval()
    exact = _exact(graph, photos)
    different, largest = 0, {name: 0.0 for name in OUTPUTS[1:]}
    rounding = {"probs": 0.0, "known": graph.known.rounding}
    for size in BATCHES:
        for start in range(0, len(photos), size):
            batch = photos[start : start + size]
            exported = dict(zip(OUTPUTS, session.run(list(OUTPUTS), {"image": batch}), strict=True))
            with torch.inference_mode():
                own = {name: t.numpy() for name, t in graph(torch.from_numpy(batch))._asdict().items()}
            different += int((exported["ids"] != own["ids"]).sum())
            for name, before in largest.items():  # np.maximum, unlike max, keeps a NaN
                largest[name] = float(np.maximum(before, np.abs(exported[name] - own[name]).max()))
            for name, before in rounding.items():
                rounding[name] = max(before, float(np.abs(own[name] - exact[name][start : start + size]).max()))
    return Parity(
        len(photos),
        different,
        largest["probs"],
        largest["known"],
        largest["embedding"],
        rounding["probs"],
        rounding["known"],
    )


@torch.inference_mode()
def _exact(graph: DeployGraph, photos: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
    """Probabilities and `known` of torch in float64, which does not depend on the batches."""
    double = copy.deepcopy(graph).double()
    answers = [double(batch) for batch in torch.from_numpy(photos).split(max(BATCHES))]
    return {name: torch.cat([getattr(each, name) for each in answers]).numpy() for name in ("probs", "known")}


def require_same_on_gpu(
    on_gpu: onnxruntime.InferenceSession, on_cpu: onnxruntime.InferenceSession, photos: NDArray[np.uint8]
) -> None:
    """Raises ParityError unless two sessions answer photos (N, S, S, 3) in the same way, but for rounding.

    A graph is compared with torch on the CPU, and then measured on a GPU.
    """
    (ids, probs, known), (others, expected, wanted) = (
        session.run(["ids", "probs", "known"], {INPUT: photos}) for session in (on_gpu, on_cpu)
    )
    largest = float(np.maximum(np.abs(probs - expected).max(), np.abs(known - wanted).max()))
    is_clear = abs(wanted[:, 0] - ACCEPTED) > GPU_TOLERANCE  # export.reject takes the classes of the others
    if expected.shape[1] > 1:
        is_clear &= expected[:, 0] - expected[:, 1] > GPU_TOLERANCE
    different = int(((ids[:, 0] != others[:, 0]) & is_clear).sum())
    if different or not largest <= GPU_TOLERANCE:
        raise ParityError(
            f"ONNX Runtime answers otherwise on this GPU than on the CPU: {different} of {len(photos)} first classes, "
            f"probabilities or known by {largest:.1e} (allowed {GPU_TOLERANCE:g}); hide the GPU (CUDA_VISIBLE_DEVICES=) to "
            "measure on the CPU"
        )


def require_parity(parity: Parity) -> None:
    """Raises ParityError unless all ids are equal, and probabilities and `known` differ only by rounding."""
    same = parity.probability <= parity.allowed and parity.known <= parity.known_allowed  # False for NaN
    if parity.different_ids or not same:
        raise ParityError(
            f"the ONNX graph differs from torch on {parity.photos} photos: {parity.different_ids} ids, probabilities by "
            f"{parity.probability:.1e} (allowed {parity.allowed:.1e}), known by {parity.known:.1e} (allowed "
            f"{parity.known_allowed:.1e}); it must not be served"
        )
