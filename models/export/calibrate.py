"""Calibrate an ensemble: `python -m models.export.calibrate --data DIR --recipe FILE --networks FILE... --ensemble FILE
--crops FILE --out DIR`.

The temperatures and the score of `known` are fitted on the selection photos, with the graph itself. No photo of an
unknown product is needed. The score is the one that best separates selection photos from photos of classes that were
struck out of training (a product similar to known ones; models.export.struck), and from selection photos cut into
shuffled tiles (anything else). Writes calibration.json, with the calibration and its evidence, and discriminants.npz,
with the rows of the score `discriminant`, to --out. Several workers (models.distributed) share the passes over photos.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import distributed
from models.data.manifest import Manifest
from models.data.photos import Photos
from models.data.trusted import selection_photos
from models.export.crops import open_ensemble, with_chosen_crops
from models.export.discriminant import Discriminant, Rows, fit, over_workers
from models.export.graph import DeployGraph
from models.export.ood import (
    DISCRIMINANT,
    SCORES,
    UNCALIBRATED,
    Calibration,
    MemberOutput,
    Separation,
    discriminants,
    fit_threshold,
    score_of,
    separation_of,
)
from models.export.passes import batches, embeddings, kept, num_own, shown, train_rows
from models.export.struck import PER_CLASS, Shown, chosen_classes, separations
from models.export.temperature import TEMPERATURES, fit_temperatures, label_probabilities
from models.networks.results import collect
from models.recipe.config import Export
from models.training.command import parser_for, run
from models.training.train import Trained

log = logging.getLogger(__name__)

TUNED, SELECTED = 2_000, 5_000  # photos that choose temperatures, 81 passes over all classes each, and `known`; at most
TILES = 8  # per side of a photo that is cut into shuffled tiles
FITTED = 400_000  # photos that discriminants are fitted to at most, spread evenly over the classes
ROWS_FILE = "discriminants.npz"

Show = Callable[[NDArray[np.int64]], Photos]  # photos of rows of a manifest


@dataclass(frozen=True)
class Chosen:
    """A calibration and its evidence.

    photos: number of selection photos that chose the temperatures. nll: mean negative log-likelihood of their labels, at
    temperature 1 and at the chosen temperatures. accepted: share of the selection photos that is accepted. separation: of
    each score, from both kinds of out-of-distribution photos.
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
        plain = {key: value for key, value in vars(self.calibration).items() if key != "discriminants"}
        return {"calibration": plain, "evidence": evidence}


def write_calibration(chosen: Chosen, out: Path) -> None:
    """Writes calibration.json, and ROWS_FILE, which has no rows if another score was chosen."""
    content = json.dumps(chosen.to_dict(), indent=1, allow_nan=False)
    (out / "calibration.json").write_text(content, encoding="utf-8")
    used = chosen.calibration.discriminants if chosen.calibration.score == DISCRIMINANT else ()
    arrays = {f"{key}{number}": array for number, each in enumerate(used) for key, array in vars(each).items()}
    np.savez(out / ROWS_FILE, **arrays)


def read_calibration(path: Path) -> tuple[Calibration, dict[str, Any]]:
    """Calibration in a calibration.json, with the discriminants beside it, and its evidence."""
    content = json.loads(path.read_text(encoding="utf-8"))
    plain = content["calibration"]
    temperature = plain["temperature"] and tuple(plain["temperature"])
    rows: tuple[Discriminant, ...] = ()
    if plain["score"] == DISCRIMINANT:
        with np.load(path.with_name(ROWS_FILE)) as file:
            numbers = range(len(file.files) // len(dataclasses.fields(Discriminant)))
            rows = tuple(
                Discriminant(*(file[f"{each.name}{n}"] for each in dataclasses.fields(Discriminant))) for n in numbers
            )
    return Calibration(**plain | {"temperature": temperature, "discriminants": rows}), content["evidence"]


def calibrate(
    members: Sequence[Trained], weights: Sequence[float], manifest: Manifest, *, settings: Export,
    folder: Path | None = None, on_device: bool = False,
) -> Chosen:  # fmt: skip
    """Calibration of an ensemble with these export settings; none without selection photos or with a single class.

    Of many selection photos every n-th decides; ids are hashes, so their order is a random one. Workers (models.distributed)
    share all passes over photos, and come to the same calibration.

    folder: of temporary files; None: the system's. on_device: as for `models.export.passes.shown`.
    """
    rows = np.flatnonzero(selection_photos(manifest))
    if not len(rows) or len(manifest.classes) < 2:
        return Chosen(UNCALIBRATED)
    few, rows = (rows[:: -(-len(rows) // most)] for most in (TUNED, SELECTED))
    show = partial(shown, manifest, side=settings.input_size, on_device=on_device)
    graph = DeployGraph(members, settings=settings, weights=weights)
    temperature, nll = measure_temperature(graph, show(few), num_classes=len(manifest.classes))
    rows_fitted = fit_discriminants(graph, manifest, show, folder=folder)
    found = Calibration(temperature, discriminants=rows_fitted)
    graph = DeployGraph(members, settings=settings, weights=weights, calibration=found)
    struck = separate_struck(graph, manifest, rows, show=show, temperature=temperature)
    modules = [Rows(each) for each in rows_fitted]
    return accept(
        Chosen(found, len(few), nll),
        *score_photos(graph, show(rows), modules),
        share=settings.accept,
        struck=struck,
    )


def fit_discriminants(
    graph: DeployGraph, manifest: Manifest, show: Show, *, folder: Path | None = None
) -> tuple[Discriminant, ...]:
    """Discriminants of all members, fitted to the centre crop of training photos; empty if they cannot be fitted.

    show: gives the photos of rows of the manifest. folder: of temporary files, in which the embeddings wait: in memory,
    three members would need 2.5 GB.
    """
    rows = train_rows(manifest, per_class=max(1, FITTED // len(manifest.classes)))
    if not len(rows):
        return ()
    with embeddings(graph, show(rows), folder=folder) as spools:
        own = manifest.target[rows[distributed.part(len(rows))]]
        fitted = [fit(spool, own, num_classes=len(manifest.classes), total=over_workers) for spool in spools]
    return tuple(each for each in fitted if each is not None) if None not in fitted else ()


def separate_struck(
    graph: DeployGraph, manifest: Manifest, selected: NDArray[np.int64], *, show: Show, temperature: Sequence[float]
) -> NDArray[np.float64] | None:
    """(S,) AUROC of all SCORES from photos of struck classes; None with too few classes.

    show: gives the photos of rows of the manifest.
    """
    every = train_rows(manifest, per_class=PER_CLASS)
    if not len(every):
        return None
    classes = chosen_classes(manifest.target[every], manifest.target[selected])
    train, known = (each[np.isin(manifest.target[each], classes)] for each in (every, selected))
    rows = np.concatenate([train, known])
    seen = Shown(kept(graph, show(rows), what="struck classes"), manifest.target[rows])
    is_train = np.arange(len(rows)) < len(train)
    return separations(seen.select(is_train), seen.select(~is_train), graph.weights.cpu(), temperature)


@torch.inference_mode()
def measure_temperature(
    graph: DeployGraph, photos: Photos, *, num_classes: int
) -> tuple[tuple[float, ...], tuple[float, float]]:
    """Temperatures for the members of an uncalibrated graph, and the NLL of the photos' labels before and after."""
    pairs = batches(graph, photos, what="temperature")
    parts = (label_probabilities(graph.output(image), label) for image, label in pairs)
    own = collect(parts, torch.empty(num_own(photos), len(graph.branches), len(TEMPERATURES)))
    probabilities = distributed.concat(own)
    weights = graph.weights.flatten().double().cpu().numpy()
    return fit_temperatures(probabilities.numpy(), weights, num_classes=num_classes)


@torch.inference_mode()
def score_photos(
    graph: DeployGraph, photos: Photos, rows: Sequence[Rows] = ()
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(N, S) all SCORES of the photos, of the photos without the class of their label, and of their shuffled tiles.

    Args:
        rows: discriminants of the members; without them, their score is NaN.
    """
    pairs = batches(graph, photos, what="score of known")
    rows = [each.to(graph.weights.device).eval() for each in rows]
    parts = (_three_scores(graph, image, label, rows) for image, label in pairs)
    every = distributed.concat(collect(parts, torch.empty(num_own(photos), 3, len(SCORES))))
    known, masked, tiles = every.double().numpy().swapaxes(0, 1)
    return known, masked, tiles


def _three_scores(graph: DeployGraph, image: Tensor, label: Tensor, rows: Sequence[Rows]) -> Tensor:
    """(B, 3, S) all SCORES of a batch, as `score_photos` returns them."""
    outputs, tiles = graph.output(image), graph.output(in_tiles(image))
    if not rows:
        table = tiles_table = torch.full_like(outputs[0].logits[0], torch.nan)
    else:
        table, tiles_table = (discriminants(rows, each, graph.weights) for each in (outputs, tiles))
    masked = table.scatter(1, label[:, None], -torch.inf)
    return torch.stack([
        scores(graph, outputs, table), scores(graph, without(outputs, label), masked), scores(graph, tiles, tiles_table),
    ], 1)  # fmt: skip


def scores(graph: DeployGraph, outputs: Sequence[MemberOutput], table: Tensor) -> Tensor:
    """(B, S) all SCORES of the photos that gave these outputs and these discriminants (B, C)."""
    mean = graph.mean(outputs)
    columns = [score_of(name, outputs, mean, graph.weights) for name in SCORES if name != DISCRIMINANT]
    return torch.cat([*columns, table.amax(1, keepdim=True)], 1)


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
    chosen: Chosen, known: NDArray[np.float64], masked: NDArray[np.float64], tiles: NDArray[np.float64], *, share: float,
    struck: NDArray[np.float64] | None = None,
) -> Chosen:  # fmt: skip
    """Adds the score that best separates photos from both kinds of out-of-distribution photos, and its threshold.

    Args:
        known, masked, tiles: (N, S) as returned by `score_photos`.
        share: share of the photos that the threshold accepts.
        struck: (S,) AUROC from photos of struck classes; None: `masked` stand for a product similar to known ones.
    """
    separation = {}
    for i, name in enumerate(SCORES):
        if not all(np.isfinite(each[:, i]).all() for each in (known, masked, tiles)):
            continue  # a score that is not available
        separation[name] = separation_of(known[:, i], masked[:, i], tiles[:, i])
        if struck is not None:
            separation[name] = separation[name]._replace(without_class=round(float(np.nan_to_num(struck[i])), 6))
    if not separation:
        return chosen
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
    with distributed.workers():
        recipe, members, weights, manifest = open_ensemble(args)
        settings = with_chosen_crops(recipe.export, args.crops)
        chosen = calibrate(members, weights, manifest, settings=settings, folder=args.out,
                           on_device=recipe.train.decode == "device")  # fmt: skip
        if distributed.rank() == 0:
            log.info("%s", summary(chosen))
            write_calibration(chosen, args.out)


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
