"""Sample weights of a training: class weights, photo weights, label confidence, and HAR (Cao et al., ICLR 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.cleaning import HALF, label_weights
from models.data.manifest import Manifest
from models.data.records import number_of, read_rows, short, text_of
from models.errors import BadTable, ConfigError
from models.recipe.config import Clean, Train

ERROR_POWER, COUNT_POWER = 0.6, 0.4  # exponents of HAR's class weights, as in the authors' code


@dataclass(frozen=True)
class SampleWeights:
    """Sample weights and regularisation of a training.

    weight: (N,) factor of each training photo's loss, with mean 1. har: (C,) strength of HAR for each class, or None.
    """

    weight: Tensor
    har: Tensor | None = None

    def to(self, device: torch.device) -> SampleWeights:
        """Copy on a device."""
        return SampleWeights(self.weight.to(device), None if self.har is None else self.har.to(device))


def make_sample_weights(settings: Train, manifest: Manifest, rows: NDArray[np.int64], *, clean: Clean) -> SampleWeights:
    """Sample weights of the training photos `rows` of a manifest, as the recipe asks.

    Raises:
        ConfigError: train.photo_weights cannot be read, or holds an invalid weight.
    """
    target = manifest.target[rows]
    counts = np.bincount(target, minlength=len(manifest.classes))
    weight = class_weights(counts, kind=settings.class_weights, beta=settings.class_beta)[target]
    if settings.photo_weights:
        weight = weight * photo_weights(Path(settings.photo_weights), manifest.id[rows])
    if clean.use == "weigh":
        weight = weight * label_confidence(manifest, rows, clean=clean)
    if not weight.sum():
        raise ConfigError(
            f"train.photo_weights: {settings.photo_weights} gives every photo the weight 0; give some photos a larger one"
        )
    har = None
    if settings.har:
        har = torch.from_numpy(settings.har * har_weights(counts, error_rates(manifest))).float()
    return SampleWeights(torch.from_numpy(weight / weight.mean()).float(), har)


def class_weights(counts: NDArray[np.int64], *, kind: str, beta: float) -> NDArray[np.float64]:
    """(C,) class weights by kind; a class without photos counts as one with a single photo.

    "effective" gives 1 / effective number of photos, (1 - beta) / (1 - beta^n) (Cui et al., CVPR 2019); "inverse" is
    its limit, 1 / n; "" gives equal weights.
    """
    n = counts.clip(1).astype(np.float64)
    if kind == "inverse":
        return 1 / n
    return (1 - beta) / -np.expm1(n * math.log(beta)) if kind == "effective" else np.ones(len(n))


def photo_weights(path: Path, ids: NDArray[np.object_]) -> NDArray[np.float64]:
    """(N,) weights of photos by id, from the columns id and weight of a .csv, .parquet or .jsonl file; 1 for other photos.

    Raises:
        ConfigError: the file cannot be read, or a weight is not a number >= 0.
    """
    given = _read_weights(path)
    return np.array([given.get(str(each), 1.0) for each in ids], dtype=np.float64)


def label_confidence(manifest: Manifest, rows: NDArray[np.int64], *, clean: Clean) -> NDArray[np.float64]:
    """(N,) label confidence in [0, 1] of the photos `rows`: `label_weights` of their quality; 1 for unscored labels.

    Scores measure the given label, so a relabelled photo has quality 1 - score.
    """
    score, labels = manifest.score[rows], manifest.target[rows]
    quality = np.where(manifest.decision[rows] == "relabelled", 1 - score, score)
    scored = ~np.isnan(quality)
    weights = label_weights(np.where(scored, labels, -1), np.where(scored, quality, 1), floor_share=clean.floor_share,
                            floor_count=clean.floor_count)  # fmt: skip
    return weights.astype(np.float64)


def _read_weights(path: Path) -> dict[str, float]:
    given: dict[str, float] = {}
    try:
        for number, record in read_rows(path, required=("id", "weight")):
            where = f"{path}: row {number}"
            photo, weight = text_of(where, record, "id"), number_of(where, record, "weight")
            if not 0 <= weight < math.inf:
                raise BadTable(
                    f"{where}, field weight: {weight} of photo {short(photo)} is not a weight; give a number >= 0"
                )
            if given.setdefault(photo, weight) != weight:
                raise BadTable(
                    f"{where}, field id: photo {short(photo)} has the weight {given[photo]} already; keep one row of it"
                )
    except BadTable as error:
        raise ConfigError(f"train.photo_weights: {error}") from None
    return given


def error_rates(manifest: Manifest) -> NDArray[np.float64]:
    """(C,) share of label issues among the train photos of each given class; 1 for a class without scores.

    Dropped photos are counted: they are most of the errors.
    """
    scored = (manifest.split == "train") & ~np.isnan(manifest.score)
    target, num_classes = manifest.given_target[scored], len(manifest.classes)
    count = np.bincount(target, minlength=num_classes)
    wrong = np.bincount(target[manifest.score[scored] < HALF], minlength=num_classes)
    return np.divide(wrong, count, out=np.ones(num_classes), where=count > 0)


def har_weights(counts: NDArray[np.int64], errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """(C,) error^0.6 / n^0.4, divided by the largest (Cao et al., ICLR 2021, as in their code)."""
    weight = errors**ERROR_POWER / counts.clip(1) ** COUNT_POWER
    return weight / weight.max() if weight.max() else weight


def jacobian_norm(logits: Tensor, target: Tensor, classifier: Tensor) -> Tensor:
    """(N,) norm of the gradient of cross-entropy with respect to the embedding, (p - e_y) W, which HAR penalises.

    Cao et al. sum over all batch norms, which needs a second backward pass. This is the term of the last one, the neck,
    where the gradient has a closed form; with a frozen backbone it is the only one.

    Args:
        logits: (N, C). target: (N,). classifier: (C, d) rows without bias.
    """
    p = logits.float().softmax(1)
    gradient = p.scatter_add(1, target[:, None], p.new_full((len(p), 1), -1.0))
    return (gradient @ classifier).square().sum(1).add(1e-12).sqrt()  # the square root has no gradient at 0
