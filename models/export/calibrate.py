"""Calibrate an ensemble: `python -m models.export.calibrate --data DIR --recipe FILE --networks FILE... --ensemble FILE
--crops FILE --out DIR`.

The graph itself is asked about the validation photos: at which temperatures its probabilities are as sure as they are right,
and which score tells best what is of the assortment. No photo of an unknown product is needed: the same photos stand for them,
once with their own class taken out of every classifier (a product like those we know), once cut into tiles that are shuffled
(anything else). What it leaves in --out is calibration.json: the calibration, and why.
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

from models.data.manifest import Manifest, read_manifest
from models.data.photos import Photos
from models.data.trusted import selection_photos, with_selection_photos
from models.export.crops import with_chosen_crops
from models.export.graph import DeployGraph, in_use
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
from models.export.temperature import fit_temperatures, label_probabilities
from models.networks.network import best_device
from models.recipe.config import Export
from models.training.command import log_progress, parser_for, read_recipe, run
from models.training.train import Trained, load_network

log = logging.getLogger(__name__)

TILES = 8  # of a side, shuffled


@dataclass(frozen=True)
class Chosen:
    """A calibration, and the evidence for it.

    photos: how many judged. surprise: mean negative log likelihood of their labels at temperature 1, and at that chosen.
    accepted: share of them. told_apart: of each score, from the same photos without their class, and in tiles.
    """

    calibration: Calibration
    photos: int = 0
    nll: tuple[float, float] | None = None
    accepted: float | None = None
    told_apart: dict[str, Separation] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """For JSON; `read_calibration` reads the calibration back."""
        plain = dataclasses.asdict(self)
        separation = {name: each._asdict() for name, each in self.told_apart.items()}
        return {"calibration": plain.pop("calibration"), "evidence": plain | {"told_apart": separation}}


def read_calibration(path: Path) -> tuple[Calibration, dict[str, Any]]:
    """Of a calibration.json, with the evidence."""
    separation = json.loads(path.read_text(encoding="utf-8"))
    plain = separation["calibration"]
    temperature = plain["temperature"] and tuple(plain["temperature"])
    return Calibration(**plain | {"temperature": temperature}), separation["evidence"]


def calibrate(members: Sequence[Trained], weights: Sequence[float], manifest: Manifest, *, settings: Export) -> Chosen:
    """Of an ensemble that looks at photos as `settings` say; nothing where there is no photo to judge by, or a single class."""
    rows = np.flatnonzero(selection_photos(manifest))
    if not len(rows) or len(manifest.classes) < 2:
        return Chosen(UNCALIBRATED)
    photos, target = Photos(manifest, rows, side=settings.input_size), manifest.target[rows]
    graph = DeployGraph(members, settings=settings, weights=weights)
    temperature, sure = measure_temperature(graph, photos, target, num_classes=len(manifest.classes))
    graph = DeployGraph(members, settings=settings, weights=weights, calibration=Calibration(temperature))
    return accept(Chosen(Calibration(temperature), len(rows), sure), *ask(graph, photos, target), share=settings.accept)


@torch.inference_mode()
def measure_temperature(
    graph: DeployGraph, photos: Photos, target: NDArray[np.int64], *, num_classes: int
) -> tuple[tuple[float, ...], tuple[float, float]]:
    """The temperatures of an uncalibrated graph's members, and the surprise at the labels (N,) before and after."""
    parts = [label_probabilities(graph.output(image), label).cpu() for image, label in batches(graph, photos, target)]
    weights = graph.weights.flatten().double().cpu().numpy()
    return fit_temperatures(torch.cat(parts).numpy(), weights, num_classes=num_classes)


@torch.inference_mode()
def ask(
    graph: DeployGraph, photos: Photos, target: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(N, S) all SCORES of the photos; of the photos without the class (N,) of their label; of the photos in tiles."""
    found: tuple[list[Tensor], ...] = ([], [], [])
    for image, label in batches(graph, photos, target):
        outputs = graph.output(image)
        for part, seen in zip(found, (outputs, without(outputs, label), graph.output(in_tiles(image))), strict=True):
            part.append(scores(graph, seen).cpu())
    known, masked, tiles = (torch.cat(part).double().numpy() for part in found)
    return known, masked, tiles


def batches(graph: DeployGraph, photos: Photos, target: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
    """Photos (B, S, S, 3) and their labels (B,), on the best device, where the graph is from now on."""
    device = graph.to(best_device()).eval().weights.device
    for image, label in zip(photos.in_order(BATCH), torch.from_numpy(target).split(BATCH), strict=True):
        yield image.to(device), label.to(device)


def scores(graph: DeployGraph, outputs: Sequence[MemberOutput]) -> Tensor:
    """(B, S) all SCORES."""
    mean = graph.mean(outputs)
    return torch.cat([score_of(name, outputs, mean, graph.weights) for name in SCORES], 1)


def without(outputs: Sequence[MemberOutput], label: Tensor) -> list[MemberOutput]:
    """The looks of an ensemble that never learnt the classes (B,) of the photos."""
    return [
        output._replace(logits=output.logits.scatter(2, label.expand(len(output.logits), -1)[..., None], -torch.inf))
        for output in outputs
    ]


def in_tiles(image: Tensor) -> Tensor:
    """(B, S, S, 3) the photos, TILES x TILES tiles of them in another order, which is always the same; a margin may stay."""
    tile = image.shape[1] // TILES
    side, grid = tile * TILES, (TILES, TILES)
    order = torch.randperm(TILES * TILES, generator=torch.Generator().manual_seed(0)).to(image.device)
    tiles = image[:, :side, :side].unflatten(2, (TILES, tile)).unflatten(1, (TILES, tile)).transpose(2, 3).flatten(1, 2)
    made = image.clone()
    made[:, :side, :side] = tiles[:, order].unflatten(1, grid).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return made


def accept(
    chosen: Chosen, known: NDArray[np.float64], masked: NDArray[np.float64], tiles: NDArray[np.float64], *, share: float
) -> Chosen:
    """With the score that tells photos best from both kinds of stranger, and a line that accepts this share of them."""
    separation = {name: separation_of(known[:, i], masked[:, i], tiles[:, i]) for i, name in enumerate(SCORES)}
    best = max(separation, key=lambda name: separation[name].mean)
    column = SCORES.index(best)
    line = fit_threshold(known[:, column], np.concatenate([masked[:, column], tiles[:, column]]), accept=share)
    if line is None:
        return dataclasses.replace(chosen, told_apart=separation)
    calibration = dataclasses.replace(chosen.calibration, score=best, slope=line.slope, threshold=line.threshold)
    accepted = float((known[:, column] >= line.threshold).mean())
    return dataclasses.replace(chosen, calibration=calibration, accepted=round(accepted, 6), told_apart=separation)


def main() -> None:
    """The command line of one calibration."""
    args = parser_for(
        "data recipe networks ensemble crops out", description="Calibrate an ensemble on validation photos."
    ).parse_args()
    log_progress()
    args.out.mkdir(parents=True, exist_ok=True)
    recipe = read_recipe(args.recipe)
    torch.set_num_threads(recipe.train.threads or torch.get_num_threads())
    networks, weights = in_use(args.networks, args.ensemble)
    manifest = with_selection_photos(read_manifest(args.data), recipe.proof.photos)
    chosen = calibrate([load_network(path) for path in networks], weights, manifest,
                       settings=with_chosen_crops(recipe.export, args.crops))  # fmt: skip
    log.info("%s", in_words(chosen))
    (args.out / "calibration.json").write_text(
        json.dumps(chosen.to_dict(), indent=1, allow_nan=False), encoding="utf-8"
    )


def in_words(chosen: Chosen) -> str:
    """One line for people."""
    made = chosen.calibration
    if chosen.nll is None or made.temperature is None:
        return "no photo to judge by: temperature 1, and known is the top probability as it is"
    degrees, (before, after) = ", ".join(f"{t:.2f}" for t in made.temperature), chosen.nll
    sure = f"temperature {degrees}: surprise at labels {before:.3f} -> {after:.3f} on {chosen.photos} photos"
    if made.slope is None:
        return f"{sure}; no score tells strangers, so known is the top probability as it is"
    return f"{sure}; known by {made.score} from {made.threshold:.3g} on, which accepts {chosen.accepted:.1%}"


if __name__ == "__main__":
    run(main)
