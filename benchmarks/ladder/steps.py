"""The steps: label scores, a head trained by them, a balanced classifier, answers on the test photos."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tail.sets import FeatureSet
from tail.training import embedded, trained_head
from torch import Tensor

from models.cleaning import Noise, estimate_noise, find_label_errors, label_quality, label_weights
from models.data.samplers import folds
from models.evaluation.scores import KEEP, Scores
from models.networks.network import Head
from models.recipe.config import Balance, Train
from models.training.classifiers import set_classifier
from models.training.decoupling import Embedded, choose_classifier

TRAIN = Train(epochs=25, batch_size=256, lr=1e-3, weight_decay=1e-2, warmup_epochs=0, backbone_lr_scale=0)
FOLDS, LIGHT_EPOCHS = 5, 8  # of the heads that score labels


@dataclass(frozen=True, kw_only=True)
class Belief:
    """Scores of the labels of the training photos, in their order.

    wrong: (n,) label issues, down to each class's floor. weight: (n,) in [0, 1]. noise: estimated confusion of classes.
    """

    wrong: NDArray[np.bool_]
    weight: NDArray[np.float32]
    noise: Noise


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One training: its photos and its settings."""

    photos: FeatureSet
    seed: int
    belief: Belief | None = None
    drop: bool = False  # drop label issues; else all photos are weighted, and the loss is corrected
    loss: str = "ce"
    params: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)

    @property
    def kept(self) -> NDArray[np.bool_]:
        """(n,) training photos that are learnt from."""
        if self.belief is None or not self.drop:
            return np.ones(len(self.photos.rows("train")), np.bool_)
        return ~self.belief.wrong

    @property
    def weight(self) -> NDArray[np.float32] | None:
        """(n,) weight of each photo; None: equal weights."""
        return None if self.belief is None or self.drop else self.belief.weight


def judge(photos: FeatureSet, *others: FeatureSet, seed: int, before: Belief | None = None) -> Belief:
    """Scores of all labels by lightly trained heads that never saw the photo; those heads learn from the scores before.

    others: the same photos, seen by other encoders.
    """
    rows = photos.rows("train")
    target, kept = photos.target[rows], np.ones(len(rows), np.bool_) if before is None else ~before.wrong
    encoders = (photos, *others)
    probs = np.zeros((len(rows), photos.num_classes), np.float32)
    ids = np.random.default_rng(seed).permutation(len(rows)).astype(str).astype(object)
    fold = folds(target, ids, num_folds=FOLDS)
    for number in range(FOLDS):
        for each in encoders:
            head = learnt(
                each, rows[kept & (fold != number)], seed=FOLDS * seed + number, train={"epochs": LIGHT_EPOCHS}
            )
            probs[fold == number] += probabilities(head, each.views[:, rows[fold == number]]).numpy() / len(encoders)
    looks = [each.views[:, rows].sum(0).numpy() for each in encoders]
    quality = label_quality(target, probs, looks)
    return Belief(wrong=find_label_errors(target, probs, looks), weight=label_weights(target, quality),
                  noise=estimate_noise(target, probs, looks))  # fmt: skip


def learn(lesson: Lesson) -> Head:
    """Head in evaluation mode."""
    rows, weight = lesson.photos.rows("train")[lesson.kept], lesson.weight
    noise = None if weight is None or lesson.belief is None else lesson.belief.noise
    return learnt(lesson.photos, rows, seed=lesson.seed, train=lesson.train, loss_name=lesson.loss, params=lesson.params,
                  weight=weight, noise=noise)  # fmt: skip


def learnt(
    photos: FeatureSet, rows: NDArray[np.int64], *, seed: int, train: dict[str, Any], params: dict[str, Any] | None = None,
    **how: Any,
) -> Head:  # fmt: skip
    """Head trained on these rows with these keys of [train] changed."""
    nobody = np.full(len(photos.target), np.nan, np.float32)
    return trained_head(photos, score=nobody, errors=np.ones(photos.num_classes), settings=dataclasses.replace(TRAIN, **train),
                        params=params or {}, seed=seed, rows=rows, **how)  # fmt: skip


def balance(head: Head, lesson: Lesson, settings: Balance) -> None:
    """Balances the head's classifier, on the photos that it was trained on; choices are made on validation photos."""
    photos, kept = lesson.photos, lesson.kept
    target = photos.target[photos.rows("train")[kept]]
    weight = None if lesson.weight is None else torch.from_numpy(lesson.weight)
    known = Embedded(embedded(head, photos, "train")[torch.from_numpy(kept)], target, weight)
    validation = Embedded(embedded(head, photos, "val"), photos.target[photos.rows("val")])
    counts = np.bincount(target, minlength=photos.num_classes)
    chosen, *_ = choose_classifier(head.classifier.weight.detach(), known, validation, counts=counts, settings=settings,
                                   confidence=0.5, seed=lesson.seed)  # fmt: skip
    set_classifier(head, chosen.option.rows, chosen.option.bias)


@torch.inference_mode()
def probabilities(head: Head, views: Tensor) -> Tensor:
    """(n, C) mean over the views (K, n, d)."""
    return torch.stack([head(view).logits.softmax(1) for view in views]).mean(0)


def asked(head: Head, photos: FeatureSet, views: Tensor) -> Scores:
    """Answers of a head to the test photos in these views (K, n, d)."""
    rows = photos.rows("test")
    target, p = photos.target[rows], probabilities(head, views).numpy()
    top = np.argsort(-p, axis=1, kind="stable")[:, :KEEP]
    return Scores(rows.astype(str), target, p[np.arange(len(p)), target], top, np.take_along_axis(p, top, 1))
