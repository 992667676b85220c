"""Scores of photos whose classes were struck out of training: a stand-in for products that are new on the shelf.

Taking a class out of a finished classifier is not enough, because the embedding has learnt to set it apart. Here small
heads are trained on the features of the backbones without a part of the classes, and judge photos of those classes
beside selection photos of the others. At most CLASSES classes take part, so the cost does not grow with their number.
Backbones that were fine-tuned have seen the struck classes; there, the stand-in is easier than a new product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.evaluation.bootstrap import auroc
from models.export.discriminant import Discriminant, Rows, fit
from models.export.ood import DISCRIMINANT, SCORES, MemberOutput, discriminants, score_of
from models.networks.network import Head

CLASSES = 200  # that take part at most
PER_CLASS = 20  # training photos of each
FOLDS = 3  # each strikes a third of the classes
EPOCHS, BATCH, LR, WEIGHT_DECAY = 15, 256, 1e-3, 1e-2
FEWEST = 3  # classes, so that each fold leaves two


@dataclass(frozen=True)
class Shown:
    """Features (N, d) of the same photos by each member, and their classes (N,)."""

    features: Sequence[Tensor]
    target: NDArray[np.int64]

    def select(self, mask: NDArray[np.bool_]) -> Shown:
        """The photos of a mask."""
        return Shown([each[torch.from_numpy(mask)] for each in self.features], self.target[mask])


def chosen_classes(train: NDArray[np.int64], selected: NDArray[np.int64]) -> NDArray[np.int64]:
    """Classes with training photos, CLASSES at most; those with selection photos come first."""
    counts = np.bincount(train)
    has_selected = np.isin(np.arange(len(counts)), selected)
    order = np.random.default_rng(0).permutation(len(counts))
    order = order[np.argsort(~has_selected[order], kind="stable")]
    return np.sort(order[counts[order] > 0][:CLASSES])


def separations(
    train: Shown, selected: Shown, weights: Tensor, temperature: Sequence[float]
) -> NDArray[np.float64] | None:
    """(S,) AUROC of all SCORES between selection photos and photos of struck classes, mean over the folds.

    None with too few classes or photos. A score that is not available has NaN.

    Args:
        train, selected: photos of some classes, as `chosen_classes` gives them.
        weights: (M, 1, 1) of the members. temperature: one per member.
    """
    classes = np.unique(train.target)
    if len(classes) < FEWEST:
        return None
    found = []
    for struck in folds_of(classes):
        left = ~np.isin(selected.target, struck)
        if not left.any():
            continue
        gone = np.isin(train.target, struck)
        kept = np.setdiff1d(classes, struck)
        judge = Judge(train.select(~gone), kept, weights, temperature)
        known, unknown = judge.scores(selected.select(left)), judge.scores(train.select(gone))
        found.append([separated(*pair) for pair in zip(known.T, unknown.T, strict=True)])
    return np.mean(found, axis=0) if found else None


def separated(known: NDArray[np.float64], unknown: NDArray[np.float64]) -> float:
    """AUROC of one score; NaN if a value is not finite."""
    return auroc(known, unknown) if np.isfinite(known).all() and np.isfinite(unknown).all() else np.nan


def folds_of(classes: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yields FOLDS parts of the classes, drawn once."""
    yield from np.array_split(np.random.default_rng(1).permutation(classes), FOLDS)


class Judge:
    """An ensemble of heads, trained on the features of the photos of some classes (C',), and its scores."""

    def __init__(self, train: Shown, classes: NDArray[np.int64], weights: Tensor, temperature: Sequence[float]) -> None:
        target = np.searchsorted(classes, train.target)
        self.weights, self.temperature = weights, temperature
        self.heads = [trained(each, torch.from_numpy(target), num_classes=len(classes)) for each in train.features]
        with torch.inference_mode():
            seen = [head.embedding(each).numpy() for head, each in zip(self.heads, train.features, strict=True)]
        fitted: list[Discriminant | None] = [fit(each, target, num_classes=len(classes)) for each in seen]
        self.rows = [Rows(each) for each in fitted if each is not None]

    @torch.inference_mode()
    def scores(self, photos: Shown) -> NDArray[np.float64]:
        """(N, S) all SCORES; NaN where a member has no discriminants."""
        outputs = []
        for head, features, temperature in zip(self.heads, photos.features, self.temperature, strict=True):
            logits, embedding = head(features)
            outputs.append(MemberOutput(logits[None] / temperature, embedding[None]))
        mean = (self.weights * torch.stack([each.logits.softmax(2).mean(0) for each in outputs])).sum(0)
        columns = [score_of(name, outputs, mean, self.weights) for name in SCORES if name != DISCRIMINANT]
        if len(self.rows) == len(outputs):
            columns.append(discriminants(self.rows, outputs, self.weights).amax(1, keepdim=True))
        else:
            columns.append(torch.full((len(mean), 1), torch.nan))
        return torch.cat(columns, 1).double().numpy()


def trained(features: Tensor, target: Tensor, *, num_classes: int) -> Head:
    """A head after EPOCHS epochs of cross-entropy on features (N, d), in evaluation mode; the same for the same input."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = Head(features.shape[1], num_classes=num_classes)
        optimiser = torch.optim.AdamW(head.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
        parts = max(1, round(len(target) / BATCH))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS * parts)
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(target)).tensor_split(parts):
                loss = functional.cross_entropy(head(features[batch]).logits, target[batch])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    return head.eval()
