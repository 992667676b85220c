"""One training on fixed features, through the same loop as every training."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.cleaning import Noise
from models.data.samplers import Sampler, folds
from models.losses import Samples, build_loss
from models.losses.correction import Correction
from models.networks.inputs import MIRRORED, Features
from models.networks.margins import margin_of
from models.networks.network import LINEAR, Head, Network, Normalisation
from models.recipe.config import Augment, Member, Train
from models.training.epochs import fit
from models.training.meta import Constant
from models.training.sample_weights import SampleWeights, class_weights, har_weights
from tail.sets import FeatureSet

FOLDS, LIGHT_EPOCHS = 4, 12  # of the heads that score labels


def trained_head(
    photos: FeatureSet, *, score: NDArray[np.float32], errors: NDArray[np.float64], settings: Train, params: dict[str, Any],
    seed: int, rows: NDArray[np.int64] | None = None, loss_name: str = "ce", member: Member = LINEAR, augment: Augment = MIRRORED,
    weight: NDArray[np.floating] | None = None, noise: Noise | None = None,
) -> Head:  # fmt: skip
    """Head in evaluation mode, trained on the train split, or on `rows` of it.

    Args:
        score: (N,) label quality. errors: (C,) of HAR.
        params: parameters and options of the loss.
        member: kind of head.
        weight: (n,) weight of each learnt sample. noise: estimated confusion of classes, by which the loss is corrected.
    """
    rows = photos.rows("train") if rows is None else rows
    torch.manual_seed(seed)
    normalisation = Normalisation((0.0,) * 3, (1.0,) * 3)
    network = Network(
        nn.Identity(),
        width=photos.views.shape[2],
        num_classes=photos.num_classes,
        normalisation=normalisation,
        member=member,
    )
    loss, target = build_loss(loss_name, num_classes=photos.num_classes, **params), photos.target[rows]
    loss.margin, loss.correction = margin_of(member), None if noise is None else Correction(noise)
    classes = [str(each) for each in range(photos.num_classes)]
    loss.begin(Samples(id=rows.astype(str).astype(object), target=target, classes=classes))
    sampler = Sampler(target=target, score=score[rows], settings=settings, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        inputs = Features(photos.views[:, rows], network.head, augment=augment)
        fit(network, loss, inputs, ids=rows.astype(str), sampler=sampler, out=Path(folder), key="",
            sample_weights=_emphasis(settings, target, errors, weight), ask=_nothing, meta=Constant(loss))  # fmt: skip
    network.head.eval()
    return network.head


def out_of_sample(photos: FeatureSet, *, settings: Train, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """(N,) log margins of the training samples' labels by lightly trained heads that never saw them, else NaN; (C,) errors."""
    rows, num_classes = photos.rows("train"), photos.num_classes
    fold = folds(photos.target[rows], rows.astype(str).astype(object), num_folds=FOLDS)
    score, none = np.full(len(photos.target), np.nan, np.float32), np.ones(num_classes)
    light = dataclasses.replace(settings, epochs=LIGHT_EPOCHS)
    for each in range(FOLDS):
        head = trained_head(
            photos, score=score, errors=none, settings=light, params={}, seed=seed, rows=rows[fold != each]
        )
        with torch.inference_mode():
            log_p = head(photos.views[0, rows[fold == each]]).logits.log_softmax(1)
        own = torch.from_numpy(photos.target[rows[fold == each]])[:, None]
        best = log_p.scatter(1, own, -torch.inf).max(1).values
        score[rows[fold == each]] = (log_p.gather(1, own)[:, 0] - best).numpy()
    wrong = np.bincount(photos.target[rows][score[rows] < 0], minlength=num_classes)
    return score, np.divide(wrong, photos.counts, out=none, where=photos.counts > 0)


def _emphasis(
    settings: Train, target: NDArray[np.int64], errors: NDArray[np.float64], of_photo: NDArray[np.floating] | None
) -> SampleWeights:
    counts = np.bincount(target, minlength=len(errors))
    weight = class_weights(counts, kind=settings.class_weights, beta=settings.class_beta)[target]
    weight = weight if of_photo is None else weight * of_photo
    har = torch.from_numpy(settings.har * har_weights(counts, errors)).float() if settings.har else None
    return SampleWeights(torch.from_numpy(weight / weight.mean()).float(), har)


def _nothing() -> tuple[Tensor, float]:
    raise AssertionError("no loss of this benchmark asks")


@torch.inference_mode()
def embedded(head: Head, photos: FeatureSet, split: str) -> Tensor:
    """Embeddings (n, 512) of the samples as they are."""
    return head.embedding(photos.views[0, photos.rows(split)]).clone()
