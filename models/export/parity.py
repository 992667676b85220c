"""Does the ONNX file answer as the torch module does? Asked on real photos, at several batch sizes."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from contract import OUTPUTS
from models.errors import ParityError
from models.export.graph import DeployGraph
from models.export.session import open_session

TOLERANCE = 1e-6  # of a probability, float32
ROUNDINGS = 4  # times what torch itself is off by in float32, where that is more: deep networks round more
BATCHES = (1, 2, 7)


@dataclass(frozen=True)
class Parity:
    """The largest differences over all photos and batch sizes; rounding: of torch's own float32 answers from those in float64."""

    photos: int
    different_ids: int
    probability: float
    known: float
    embedding: float
    rounding: float
    known_rounding: float

    @property
    def allowed(self) -> float:
        """Largest difference of a probability that is rounding and nothing else."""
        return max(TOLERANCE, ROUNDINGS * self.rounding)

    @property
    def known_allowed(self) -> float:
        """The same of `known`, whose slope enlarges what rounding does to a score."""
        return max(TOLERANCE, ROUNDINGS * self.known_rounding)


def measure_parity(graph: DeployGraph, path: Path, photos: NDArray[np.uint8]) -> Parity:
    """Both sides asked the same photos (N, S, S, 3), in batches of 1, 2 and 7."""
    session = open_session(path)
    graph = graph.cpu().eval()
    rounding = _rounding(graph, photos)
    different, largest = 0, {name: 0.0 for name in OUTPUTS[1:]}
    for size in BATCHES:
        for start in range(0, len(photos), size):
            batch = photos[start : start + size]
            said = dict(zip(OUTPUTS, session.run(list(OUTPUTS), {"image": batch}), strict=True))
            with torch.inference_mode():
                own = {name: t.numpy() for name, t in graph(torch.from_numpy(batch))._asdict().items()}
            different += int((said["ids"] != own["ids"]).sum())
            for name, before in largest.items():  # np.maximum, unlike max, keeps a NaN
                largest[name] = float(np.maximum(before, np.abs(said[name] - own[name]).max()))
    return Parity(len(photos), different, largest["probs"], largest["known"], largest["embedding"], *rounding)


@torch.inference_mode()
def _rounding(graph: DeployGraph, photos: NDArray[np.uint8]) -> tuple[float, float]:
    """Of probabilities and of `known`."""
    exact, probs, known = copy.deepcopy(graph).double(), 0.0, graph.known.rounding
    for batch in torch.from_numpy(photos).split(max(BATCHES)):
        single, double = graph(batch), exact(batch)
        probs = max(probs, float((single.probs - double.probs).abs().max()))
        known = max(known, float((single.known - double.known).abs().max()))
    return probs, known


def require_parity(parity: Parity) -> None:
    """ParityError unless all ids are equal, and probabilities and `known` differ by rounding alone."""
    same = parity.probability <= parity.allowed and parity.known <= parity.known_allowed  # a NaN is no agreement
    if parity.different_ids or not same:
        raise ParityError(
            f"the ONNX graph differs from torch on {parity.photos} photos: {parity.different_ids} ids, probabilities by "
            f"{parity.probability:.1e} (allowed {parity.allowed:.1e}), known by {parity.known:.1e} (allowed "
            f"{parity.known_allowed:.1e}); it must not be served"
        )
