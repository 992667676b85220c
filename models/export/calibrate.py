"""Calibrate an ensemble: `python -m models.export.calibrate --data DIR --recipe FILE --networks FILE... --ensemble FILE
--crops FILE --out DIR`.

The temperatures and the score of `known` are fitted on the selection photos, with the graph itself. No photo of an
unknown product is needed. Two kinds of out-of-distribution photos are made of the selection photos: without their own
class in any classifier (a product similar to known ones), and cut into shuffled tiles (anything else). Writes
calibration.json, with the calibration and its evidence, to --out.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.data.manifest import Manifest
from models.data.photos import Photos
from models.data.trusted import selection_photos
from models.export.crops import open_ensemble, with_chosen_crops
from models.export.graph import DeployGraph
from models.export.measure import BATCH
from models.export.ood import (
    SCORES,
    UNCALIBRATED,
    Calibration,
    MemberOutput,
    Separation,
    fit_threshold,
    score_of,
    separation_of,
)
from models.export.temperature import TEMPERATURES, fit_temperatures, label_probabilities
from models.networks.network import best_device
from models.networks.results import collect
from models.progress import with_progress
from models.recipe.config import Export
from models.training.command import parser_for, run
from models.training.train import Trained

log = logging.getLogger(__name__)

TILES = 8  # per side of a photo that is cut into shuffled tiles


@dataclass(frozen=True)
class Chosen:
    """A calibration and its evidence.

    photos: number of selection photos. nll: mean negative log-likelihood of their labels, at temperature 1 and at the
    chosen temperatures. accepted: share of these photos that is accepted. separation: of each score, from both kinds of
    out-of-distribution photos.
    """

    calibration: Calibration
    photos: int = 0
    nll: tuple[float, float] | None = None
    accepted: float | None = None
    separation: dict[str, Separation] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Content for JSON; `read_calibration` reads it. Model versions carry the evidence under these keys."""
        evidence = {
            "photos": self.photos,
            "surprise": self.nll,
            "accepted": self.accepted,
            "told_apart": {name: each._asdict() for name, each in self.separation.items()},
        }
        return {"calibration": dataclasses.asdict(self.calibration), "evidence": evidence}


def read_calibration(path: Path) -> tuple[Calibration, dict[str, Any]]:
    """Calibration in a calibration.json, and its evidence."""
    content = json.loads(path.read_text(encoding="utf-8"))
    plain = content["calibration"]
    temperature = plain["temperature"] and tuple(plain["temperature"])
    return Calibration(**plain | {"temperature": temperature}), content["evidence"]


def calibrate(members: Sequence[Trained], weights: Sequence[float], manifest: Manifest, *, settings: Export) -> Chosen:
    """Calibration of an ensemble with these export settings; none without selection photos or with a single class."""
    rows = np.flatnonzero(selection_photos(manifest))
    if not len(rows) or len(manifest.classes) < 2:
        return Chosen(UNCALIBRATED)
    photos, target = Photos(manifest, rows, side=settings.input_size), manifest.target[rows]
    graph = DeployGraph(members, settings=settings, weights=weights)
    temperature, nll = measure_temperature(graph, photos, target, num_classes=len(manifest.classes))
    graph = DeployGraph(members, settings=settings, weights=weights, calibration=Calibration(temperature))
    chosen = Chosen(Calibration(temperature), len(rows), nll)
    return accept(chosen, *score_photos(graph, photos, target), share=settings.accept)


@torch.inference_mode()
def measure_temperature(
    graph: DeployGraph, photos: Photos, target: NDArray[np.int64], *, num_classes: int
) -> tuple[tuple[float, ...], tuple[float, float]]:
    """Temperatures for the members of an uncalibrated graph, and the NLL of the labels (N,) before and after."""
    shown = batches(graph, photos, target, what="temperature")
    parts = (label_probabilities(graph.output(image), label) for image, label in shown)
    probabilities = collect(parts, torch.empty(len(photos), len(graph.branches), len(TEMPERATURES)))
    weights = graph.weights.flatten().double().cpu().numpy()
    return fit_temperatures(probabilities.numpy(), weights, num_classes=num_classes)


@torch.inference_mode()
def score_photos(
    graph: DeployGraph, photos: Photos, target: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(N, S) all SCORES of the photos, of the photos without the class (N,) of their label, and of their shuffled tiles."""
    shown = batches(graph, photos, target, what="score of known")
    parts = (_three_scores(graph, image, label) for image, label in shown)
    known, masked, tiles = collect(parts, torch.empty(len(photos), 3, len(SCORES))).double().numpy().swapaxes(0, 1)
    return known, masked, tiles


def _three_scores(graph: DeployGraph, image: Tensor, label: Tensor) -> Tensor:
    """(B, 3, S) all SCORES of a batch, as `score_photos` returns them."""
    outputs = graph.output(image)
    kinds = (outputs, without(outputs, label), graph.output(in_tiles(image)))
    return torch.stack([scores(graph, kind) for kind in kinds], 1)


def batches(
    graph: DeployGraph, photos: Photos, target: NDArray[np.int64], *, what: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Photos (B, S, S, 3) and their labels (B,) on the best device, to which the graph is moved; with progress of `what`."""
    device = graph.to(best_device()).eval().weights.device
    images = with_progress(photos.in_order(BATCH), what, len(photos))
    for image, label in zip(images, torch.from_numpy(target).split(BATCH), strict=True):
        yield image.to(device), label.to(device)


def scores(graph: DeployGraph, outputs: Sequence[MemberOutput]) -> Tensor:
    """(B, S) all SCORES of the photos that gave these outputs."""
    mean = graph.mean(outputs)
    return torch.cat([score_of(name, outputs, mean, graph.weights) for name in SCORES], 1)


def without(outputs: Sequence[MemberOutput], label: Tensor) -> list[MemberOutput]:
    """Outputs of an ensemble that does not know the classes (B,) of the photos: their logits are -inf."""
    return [
        output._replace(logits=output.logits.scatter(2, label.expand(len(output.logits), -1)[..., None], -torch.inf))
        for output in outputs
    ]


def in_tiles(image: Tensor) -> Tensor:
    """(B, S, S, 3) photos with their TILES x TILES tiles in a fixed random order; a margin at the end stays."""
    tile = image.shape[1] // TILES
    side, grid = tile * TILES, (TILES, TILES)
    order = torch.randperm(TILES * TILES, generator=torch.Generator().manual_seed(0)).to(image.device)
    tiles = image[:, :side, :side].unflatten(2, (TILES, tile)).unflatten(1, (TILES, tile)).transpose(2, 3).flatten(1, 2)
    shuffled = image.clone()
    shuffled[:, :side, :side] = tiles[:, order].unflatten(1, grid).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return shuffled


def accept(
    chosen: Chosen, known: NDArray[np.float64], masked: NDArray[np.float64], tiles: NDArray[np.float64], *, share: float
) -> Chosen:
    """Adds the score that best separates photos from both kinds of out-of-distribution photos, and its threshold.

    Args:
        known, masked, tiles: (N, S) as returned by `score_photos`.
        share: share of the photos that the threshold accepts.
    """
    separation = {name: separation_of(known[:, i], masked[:, i], tiles[:, i]) for i, name in enumerate(SCORES)}
    best = max(separation, key=lambda name: separation[name].mean)
    column = SCORES.index(best)
    fitted = fit_threshold(known[:, column], np.concatenate([masked[:, column], tiles[:, column]]), accept=share)
    if fitted is None:
        return dataclasses.replace(chosen, separation=separation)
    calibration = dataclasses.replace(chosen.calibration, score=best, slope=fitted.slope, threshold=fitted.threshold)
    accepted = float((known[:, column] >= fitted.threshold).mean())
    return dataclasses.replace(chosen, calibration=calibration, accepted=round(accepted, 6), separation=separation)


def main() -> None:
    """Command line that calibrates one ensemble."""
    parser = parser_for(
        "data recipe networks ensemble crops out", description="Calibrate an ensemble on validation photos."
    )
    args = parser.parse_args()
    recipe, members, weights, manifest = open_ensemble(args)
    chosen = calibrate(members, weights, manifest, settings=with_chosen_crops(recipe.export, args.crops))
    log.info("%s", summary(chosen))
    (args.out / "calibration.json").write_text(
        json.dumps(chosen.to_dict(), indent=1, allow_nan=False), encoding="utf-8"
    )


def summary(chosen: Chosen) -> str:
    """One line for the log."""
    calibration = chosen.calibration
    if chosen.nll is None or calibration.temperature is None:
        return "no validation photos to calibrate on: temperature is 1, and known is the top probability"
    temperatures, (before, after) = ", ".join(f"{t:.2f}" for t in calibration.temperature), chosen.nll
    fitted = f"temperature {temperatures}: NLL of labels {before:.3f} -> {after:.3f} on {chosen.photos} photos"
    if calibration.slope is None:
        return f"{fitted}; no score separates out-of-distribution photos, so known is the top probability"
    return f"{fitted}; known by {calibration.score} >= {calibration.threshold:.3g}, which accepts {chosen.accepted:.1%}"


if __name__ == "__main__":
    run(main)
