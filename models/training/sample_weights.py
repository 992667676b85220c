"""How much each photo and each class counts in a training: weights of classes, weights of photos, HAR."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.cleaning import HALF, label_weights
from models.data.manifest import Manifest
from models.errors import ConfigError
from models.recipe.config import Clean, Train

ERROR_POWER, COUNT_POWER = 0.6, 0.4  # of HAR's class weights, as in the authors' code


@dataclass(frozen=True)
class SampleWeights:
    """weight: (N,) factor of each training photo's loss, mean 1. har: (C,) strength of HAR for each class, or None."""

    weight: Tensor
    har: Tensor | None = None

    def to(self, device: torch.device) -> SampleWeights:
        """The same on a device."""
        return SampleWeights(self.weight.to(device), None if self.har is None else self.har.to(device))


def make_sample_weights(settings: Train, manifest: Manifest, rows: NDArray[np.int64], *, clean: Clean) -> SampleWeights:
    """What a recipe asks for, for the training photos `rows` of a manifest.

    Raises:
        ConfigError: train.photo_weights cannot be read, or holds what is no weight.
    """
    target = manifest.target[rows]
    counts = np.bincount(target, minlength=len(manifest.classes))
    weight = class_weights(counts, kind=settings.class_weights, beta=settings.class_beta)[target]
    if settings.photo_weights:
        weight = weight * photo_weights(Path(settings.photo_weights), manifest.id[rows])
    if clean.use == "weigh":
        weight = weight * label_confidence(manifest, rows, clean=clean)
    if not weight.sum():
        raise ConfigError(f"train.photo_weights: {settings.photo_weights} gives every photo the weight 0; raise some")
    har = None
    if settings.har:
        har = torch.from_numpy(settings.har * har_weights(counts, error_rates(manifest))).float()
    return SampleWeights(torch.from_numpy(weight / weight.mean()).float(), har)


def class_weights(counts: NDArray[np.int64], *, kind: str, beta: float) -> NDArray[np.float64]:
    """(C,) 1 / effective number of photos, (1 - beta) / (1 - beta^n) (Cui et al., CVPR 2019); "inverse" is its limit, 1 / n.

    "" weighs all classes alike. A class without photos counts as one with one.
    """
    n = counts.clip(1).astype(np.float64)
    if kind == "inverse":
        return 1 / n
    return (1 - beta) / -np.expm1(n * math.log(beta)) if kind == "effective" else np.ones(len(n))


def photo_weights(path: Path, ids: NDArray[np.object_]) -> NDArray[np.float64]:
    """(N,) weights of the photos with these ids, from the columns id and weight of a .csv or .parquet file; 1 where it has none.

    Raises:
        ConfigError: no such file or columns, or a weight that is not a number >= 0.
    """
    given = _read_weights(path)
    wrong = next((photo for photo, weight in given.items() if not 0 <= weight < math.inf), None)
    if wrong is not None:
        raise ConfigError(
            f"train.photo_weights: {path}: {given[wrong]} of {wrong} is no weight; give numbers from 0 up"
        )
    return np.array([given.get(str(each), 1.0) for each in ids], dtype=np.float64)


def label_confidence(manifest: Manifest, rows: NDArray[np.int64], *, clean: Clean) -> NDArray[np.float64]:
    """(N,) weights in [0, 1] of the labels of `rows`, by `label_weights` of their scores; 1 where none was ever judged.

    A score is of the given label, so a photo that was relabelled counts by what its old label lacks.
    """
    score, labels = manifest.score[rows], manifest.target[rows]
    quality = np.where(manifest.decision[rows] == "relabelled", 1 - score, score)
    judged = ~np.isnan(quality)
    weights = label_weights(np.where(judged, labels, -1), np.where(judged, quality, 1), floor_share=clean.floor_share,
                            floor_count=clean.floor_count)  # fmt: skip
    return weights.astype(np.float64)


def _read_weights(path: Path) -> dict[str, float]:
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path, columns=["id", "weight"])
            return dict(zip(table["id"].to_pylist(), map(float, table["weight"].to_pylist()), strict=True))
        with path.open(encoding="utf-8", newline="") as file:
            return {row["id"]: float(row["weight"]) for row in csv.DictReader(file)}
    except (OSError, ValueError, TypeError, KeyError, csv.Error, pa.ArrowException) as error:
        raise ConfigError(
            f"train.photo_weights: {path} cannot be read ({type(error).__name__}: {error}); give a .csv or .parquet file with "
            "the columns id and weight"
        ) from None


def error_rates(manifest: Manifest) -> NDArray[np.float64]:
    """(C,) share of each given class's train photos whose label cleaning does not believe; 1 of a class never judged.

    Dropped photos take part: they are most of the errors.
    """
    judged = (manifest.split == "train") & ~np.isnan(manifest.score)
    target, num_classes = manifest.given_target[judged], len(manifest.classes)
    shown = np.bincount(target, minlength=num_classes)
    wrong = np.bincount(target[manifest.score[judged] < HALF], minlength=num_classes)
    return np.divide(wrong, shown, out=np.ones(num_classes), where=shown > 0)


def har_weights(counts: NDArray[np.int64], errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """(C,) error^0.6 / n^0.4, divided by the largest (Cao et al., ICLR 2021, as their code has it)."""
    weight = errors**ERROR_POWER / counts.clip(1) ** COUNT_POWER
    return weight / weight.max() if weight.max() else weight


def jacobian_norm(logits: Tensor, target: Tensor, classifier: Tensor) -> Tensor:
    """(N,) length of the gradient of cross-entropy by the embedding, (p - e_y) W: what HAR keeps small.

    Cao et al. take the sum over all batch norms, which needs a second way back through the network. This is the last of them, the
    neck, where the gradient is known in closed form; with a frozen backbone there is no other.

    Args:
        logits: (N, C). target: (N,). classifier: (C, d) without bias.
    """
    slope = logits.float().softmax(1)
    slope = slope - torch.nn.functional.one_hot(target, logits.shape[1])
    return (slope @ classifier).square().sum(1).add(1e-12).sqrt()  # the root of 0 has no gradient
