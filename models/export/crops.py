"""Choose crops and their enlargement: `python -m models.export.crops --data DIR --recipe FILE --networks FILE... --ensemble FILE
--out DIR`.

Where `export.enlarge` names several ratios, the graph itself is asked about the validation photos with each, and with one view of
the whole photo. The smallest ratio within one standard error of the best is taken, and one view, which costs a tenth, unless the
bootstrap says that crops are better. What it leaves in --out is crops.json: the choice, and why.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.data.manifest import Manifest, read_manifest
from models.data.photos import Photos
from models.data.trusted import selection_photos, with_selection_photos
from models.evaluation.bootstrap import Gain, class_share, gain, standard_error
from models.export.graph import DeployGraph, in_use
from models.export.measure import BATCH
from models.networks.network import best_device
from models.recipe.config import Export
from models.training.command import log_progress, parser_for, read_recipe, run
from models.training.train import Trained, load_network

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tried:
    """One way to look at a photo: mean-class accuracy on validation photos, and its standard error to the best ratio's."""

    crops: int
    enlarge: float
    mean_class: float
    error: float


@dataclass(frozen=True)
class CropChoice:
    """The settings with what was chosen, and the evidence: what crops gain over one view; None where nothing was to choose."""

    settings: Export
    gain: Gain | None = None
    tried: tuple[Tried, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "crops": self.settings.crops,
            "enlarge": self.settings.enlarge[0],
            "gain": self.gain and self.gain.to_dict(),
            "tried": [dataclasses.asdict(each) for each in self.tried],
        }


def with_chosen_crops(settings: Export, chosen: Path) -> Export:
    """The settings with the choice of a crops.json."""
    content = json.loads(chosen.read_text(encoding="utf-8"))
    return dataclasses.replace(settings, crops=content["crops"], enlarge=(content["enlarge"],))


def choose_crops(
    members: Sequence[Trained], weights: Sequence[float], manifest: Manifest, *, settings: Export, confidence: float
) -> CropChoice:
    """Crops and ratio for an ensemble; the recipe's first ratio where there is one alone, or no photo to judge by."""
    first = dataclasses.replace(settings, enlarge=settings.enlarge[:1])
    rows = np.flatnonzero(selection_photos(manifest))
    if settings.crops == 1 or len(settings.enlarge) == 1 or not len(rows):
        return CropChoice(first)
    photos, target = Photos(manifest, rows, side=settings.input_size), manifest.target[rows]
    ways = [dataclasses.replace(settings, enlarge=(ratio,)) for ratio in sorted(set(settings.enlarge))]
    single = dataclasses.replace(first, crops=1)
    hits = [ask(DeployGraph(members, settings=way, weights=weights), photos) == target for way in (*ways, single)]
    return weigh(ways, single, np.stack(hits[:-1]), hits[-1], target, confidence=confidence)


def ask(graph: DeployGraph, photos: Photos) -> NDArray[np.int64]:
    """(N,) the class that the graph ranks first."""
    graph.to(best_device()).eval()
    with torch.inference_mode():
        ids = [graph(batch.to(graph.weights.device)).ids[:, 0].cpu() for batch in photos.in_order(BATCH)]
    return torch.cat(ids).numpy()


def weigh(
    ways: Sequence[Export], single: Export, hits: NDArray[np.bool_], single_hit: NDArray[np.bool_], target: NDArray[np.int64],
    *, confidence: float,
) -> CropChoice:  # fmt: skip
    """The choice between ratios, from the smallest up, and one view.

    Args:
        hits: (R, N) whether each photo was recognised with each ratio; single_hit: (N,) with one view.
    """
    share = class_share(target)
    curve = (hits * share).sum(1) / share.sum()
    best = hits[int(curve.argmax())]
    errors = np.array([standard_error(best, hit, target, seed=0) for hit in (*hits, single_hit)])
    chosen = int(np.flatnonzero(curve >= curve.max() - errors[:-1])[0])
    found = gain(single_hit, hits[chosen], target, confidence=confidence)
    accuracy = [*curve, found.before]
    tried = (Tried(way.crops, way.enlarge[0], round(float(value), 6), round(float(error), 6))
             for way, value, error in zip((*ways, single), accuracy, errors, strict=True))  # fmt: skip
    return CropChoice(ways[chosen] if found.stays else single, found, tuple(tried))


def main() -> None:
    """The command line of one choice."""
    args = parser_for(
        "data recipe networks ensemble out", description="Choose crops and their enlargement on validation photos."
    ).parse_args()
    log_progress()
    args.out.mkdir(parents=True, exist_ok=True)
    recipe = read_recipe(args.recipe)
    torch.set_num_threads(recipe.train.threads or torch.get_num_threads())
    networks, weights = in_use(args.networks, args.ensemble)
    members = [load_network(path) for path in networks]
    manifest = with_selection_photos(read_manifest(args.data), recipe.proof.photos)
    choice = choose_crops(members, weights, manifest, settings=recipe.export, confidence=recipe.proof.confidence)
    log.info("%d crops, enlarged %.2f times, of %d ways", choice.settings.crops, choice.settings.enlarge[0],
             len(choice.tried) or 1)  # fmt: skip
    (args.out / "crops.json").write_text(json.dumps(choice.to_dict(), indent=1, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    run(main)
