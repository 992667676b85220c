"""Choose crops and their enlargement:
`python -m models.export.crops --data DIR --recipe FILE --networks FILE... --ensemble FILE --out DIR`.

If `export.enlarge` names several ratios, the graph is evaluated on the selection photos with each ratio, and with a
single crop. The smallest ratio within one standard error of the best is taken. Crops are used only if the bootstrap
proves that they are better than a single crop, which costs a tenth. Writes crops.json, with the choice and its
evidence, to --out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from models import distributed
from models.data.manifest import Manifest, read_manifest
from models.data.photos import Photos
from models.data.trusted import selection_photos, with_selection_photos
from models.evaluation.bootstrap import Gain, class_share, gain, standard_error
from models.export.graph import DeployGraph, used_networks
from models.export.measure import BATCH
from models.export.passes import shown
from models.networks.network import best_device, set_threads
from models.networks.results import collect
from models.progress import with_progress
from models.recipe.config import Export, Recipe
from models.training.command import log_progress, parser_for, read_recipe, run
from models.training.train import Trained, load_network

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tried:
    """Mean-class accuracy with some crops on the selection photos, and standard error of its difference to the best."""

    crops: int
    enlarge: float
    mean_class: float
    error: float


@dataclass(frozen=True)
class CropChoice:
    """Settings with the chosen crops, and the evidence: the gain of crops over a single crop; None without a choice."""

    settings: Export
    gain: Gain | None = None
    tried: tuple[Tried, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        return {
            "crops": self.settings.crops,
            "enlarge": self.settings.enlarge[0],
            "gain": self.gain and self.gain.to_dict(),
            "tried": [dataclasses.asdict(each) for each in self.tried],
        }


def with_chosen_crops(settings: Export, chosen: Path) -> Export:
    """Settings with the choice of a crops.json."""
    content = json.loads(chosen.read_text(encoding="utf-8"))
    return dataclasses.replace(settings, crops=content["crops"], enlarge=(content["enlarge"],))


def choose_crops(
    members: Sequence[Trained], weights: Sequence[float], manifest: Manifest, *, settings: Export, confidence: float,
    on_device: bool = False,
) -> CropChoice:  # fmt: skip
    """Crops and ratio for an ensemble; the recipe's first ratio if there is no other or there are no selection photos.

    on_device: as for `models.export.passes.shown`.
    """
    first = dataclasses.replace(settings, enlarge=settings.enlarge[:1])
    rows = np.flatnonzero(selection_photos(manifest))
    if settings.crops == 1 or len(settings.enlarge) == 1 or not len(rows):
        return CropChoice(first)
    photos, target = shown(manifest, rows, side=settings.input_size, on_device=on_device), manifest.target[rows]
    candidates = [dataclasses.replace(settings, enlarge=(ratio,)) for ratio in sorted(set(settings.enlarge))]
    single = dataclasses.replace(first, crops=1)
    hits = []
    for each in (*candidates, single):
        hits.append(first_classes(DeployGraph(members, settings=each, weights=weights), photos) == target)
    return choose_ratio(candidates, single, np.stack(hits[:-1]), hits[-1], target, confidence=confidence)


def first_classes(graph: DeployGraph, photos: Photos) -> NDArray[np.int64]:
    """(N,) class that the graph ranks first for each photo; each worker asks its own about a part of them."""
    graph.to(best_device()).eval()
    own = distributed.part(len(photos))
    first = torch.empty(own.stop - own.start, dtype=torch.int64)
    batches = with_progress(photos.in_order(BATCH, part=own), "crops", len(first))
    with torch.inference_mode():
        found = collect((graph(each.to(graph.weights.device)).ids[:, 0] for each in batches), first)
    return distributed.concat(found).numpy()


def choose_ratio(
    candidates: Sequence[Export],
    single: Export,
    hits: NDArray[np.bool_],
    single_hit: NDArray[np.bool_],
    target: NDArray[np.int64],
    *,
    confidence: float,
) -> CropChoice:
    """Choice between R ratios, in ascending order, and a single crop.

    Args:
        candidates, single: settings with each ratio, and with a single crop.
        hits: (R, N) True for each photo recognised with each ratio.
        single_hit: (N,) True for each photo recognised with a single crop.
        target: (N,) classes of the photos.
        confidence: as in models.evaluation.bootstrap.
    """
    share = class_share(target)
    curve = (hits * share).sum(1) / share.sum()
    best = hits[int(curve.argmax())]
    errors = np.array([standard_error(best, hit, target, seed=0) for hit in (*hits, single_hit)])
    chosen = int(np.flatnonzero(curve >= curve.max() - errors[:-1])[0])
    gained = gain(single_hit, hits[chosen], target, confidence=confidence)
    accuracy = [*curve, gained.before]
    tried = (Tried(each.crops, each.enlarge[0], round(float(value), 6), round(float(error), 6))
             for each, value, error in zip((*candidates, single), accuracy, errors, strict=True))  # fmt: skip
    return CropChoice(candidates[chosen] if gained.stays else single, gained, tuple(tried))


class Ensemble(NamedTuple):
    """Networks that are used, with their weights, and what they are tuned on."""

    recipe: Recipe
    members: list[Trained]
    weights: list[float]
    manifest: Manifest  # with the selection photos as validation photos


def open_ensemble(args: argparse.Namespace) -> Ensemble:
    """The ensemble that `--networks`, `--ensemble`, `--recipe` and `--data` name; creates the output folder."""
    if distributed.rank() == 0:
        log_progress()
    args.out.mkdir(parents=True, exist_ok=True)
    recipe = read_recipe(args.recipe)
    set_threads(recipe.train.threads)
    networks, weights = used_networks(args.networks, args.ensemble)
    manifest = with_selection_photos(read_manifest(args.data), recipe.proof.photos)
    return Ensemble(recipe, [load_network(path) for path in networks], weights, manifest)


def main() -> None:
    """Command line that chooses the crops of one ensemble."""
    parser = parser_for(
        "data recipe networks ensemble out", description="Choose crops and their enlargement on validation photos."
    )
    args = parser.parse_args()
    with distributed.workers():
        recipe, members, weights, manifest = open_ensemble(args)
        choice = choose_crops(members, weights, manifest, settings=recipe.export, confidence=recipe.proof.confidence,
                              on_device=recipe.train.decode == "device")  # fmt: skip
        if distributed.rank():
            return
        log.info("chose %d crops, enlarged %.2f times, from %d candidates", choice.settings.crops, choice.settings.enlarge[0],
                 len(choice.tried) or 1)  # fmt: skip
        (args.out / "crops.json").write_text(json.dumps(choice.to_dict(), indent=1, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    run(main)
