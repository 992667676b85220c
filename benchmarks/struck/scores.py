"""Scores of ensembles of heads that keep at most a row for each class, and sums of two scores of any kind.

guidance  energy times the largest product of a class mean's cosine and the mean energy of that class: NNGuide (Park et al., ICCV
          2023) with the class means in place of a part of the training photos, so that no photo is kept
scale     energy of the logits times exp(r), where r is the sum of the backbone's features over the sum of those at or above
          their PERCENTILE: SCALE (Xu et al., ICLR 2024, arXiv 2310.00227) on the features before the embedding, which alone
          are not negative

A sum of two is the mean of their distances from the mean of known photos, in standard deviations of these.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.export.ood import SCORES
from models.export.struck import Judge, Shown, folds_of
from models.networks.network import Head

MORE = ("guidance", "scale")
PERCENTILE = 0.85  # of SCALE, as published
EVERY = (*SCORES, *MORE)
NAMES = (*EVERY, *(f"{one} + {other}" for one, other in itertools.combinations(EVERY, 2)))


class Guide:
    """Class means and their energies of each head, from the features (N, d) of training photos."""

    def __init__(self, heads: Sequence[Head], train: Shown, weights: Tensor, temperature: Sequence[float]) -> None:
        self.heads, self.weights, self.temperature = heads, weights, temperature
        target, count = torch.from_numpy(train.target), int(train.target.max()) + 1
        self.centres, self.rows = [], []
        with torch.inference_mode():
            for head, features, t in zip(heads, train.features, temperature, strict=True):
                logits, embedding = head(features)
                centre, sizes = embedding.mean(0), torch.bincount(target, minlength=count).clamp_min(1)
                mean = functional.normalize(
                    torch.zeros(count, embedding.shape[1]).index_add_(0, target, embedding - centre)
                )
                energy = torch.zeros(count).index_add_(0, target, (logits / t).logsumexp(1)) / sizes
                self.centres.append(centre)
                self.rows.append(mean * energy[:, None])

    @torch.inference_mode()
    def scores(self, features: Sequence[Tensor]) -> NDArray[np.float64]:
        """(N, 2) MORE of photos, from the features (N, d) of each encoder; means over the heads by their weights."""
        found = []
        for head, each, t, centre, rows in zip(
            self.heads, features, self.temperature, self.centres, self.rows, strict=True
        ):
            logits, embedding = head(each)
            logits, away = logits / t, functional.normalize(embedding - centre)
            scale = shaping(each)[:, None].exp()
            found.append(torch.stack([logits.logsumexp(1) * (away @ rows.T).amax(1), (logits * scale).logsumexp(1)], 1))
        return (self.weights * torch.stack(found)).sum(0).double().numpy()


def shaping(features: Tensor) -> Tensor:
    """(N,) r of SCALE: at least 1 where no feature is negative."""
    line = features.quantile(PERCENTILE, dim=1, keepdim=True)
    return features.sum(1) / torch.where(features >= line, features, 0).sum(1).clamp_min(1e-12)


def with_sums(scores: NDArray[np.float64], known: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, len(NAMES)) scores (N, len(EVERY)) and sums of two of them, by the mean and spread of known photos (n, len(EVERY))."""
    standard = (scores - known.mean(0)) / np.maximum(known.std(0), 1e-12)
    sums = [standard[:, one] + standard[:, other] for one, other in itertools.combinations(range(len(EVERY)), 2)]
    return np.column_stack([scores, *sums])


def struck_pairs(
    train: Shown, selected: Shown, weights: Tensor, temperature: Sequence[float]
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """All NAMES of selection photos and of photos of struck classes, fold by fold, by heads that did not learn these classes."""
    classes, found = np.unique(train.target), []
    for struck in folds_of(classes):
        gone, left = np.isin(train.target, struck), ~np.isin(selected.target, struck)
        if not left.any():
            continue
        kept, kept_classes = train.select(~gone), np.setdiff1d(classes, struck)
        judge = Judge(kept, kept_classes, weights, temperature)
        guide = Guide(
            judge.heads, Shown(kept.features, np.searchsorted(kept_classes, kept.target)), weights, temperature
        )
        known, unknown = (
            np.column_stack([judge.scores(photos), guide.scores(photos.features)])
            for photos in (selected.select(left), train.select(gone))
        )
        found.append((with_sums(known, known), with_sums(unknown, known)))
    return found
