"""DeFT's detector (Wei et al., NeurIPS 2024, arXiv 2409.19696) for image encoders alone.

Each class has a positive and a negative direction; the label is clean if the photo is more similar to the positive one.
The paper learns them as prompts of CLIP's text encoder. Here they are rows: the positive ones start at the class means, the
negative ones at their mean, and both are learnt by the paper's loss: cross-entropy of the positive similarities, and
negative learning of a random other class, -log P(clean | given) - log (1 - P(clean | other)). A photo is judged by rows
that were learnt in the folds without it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.data.samplers import folds
from opponents.evidence import Evidence, Opinion

FOLDS, EPOCHS, BATCH, LR, SCALE = 5, 8, 256, 3e-3, 16.0


def deft(evidence: Evidence) -> Opinion:
    """Opinion by the rows of the folds."""
    ids = np.random.default_rng(evidence.seed).permutation(len(evidence.labels)).astype(str).astype(object)
    fold = folds(evidence.labels, ids, num_folds=FOLDS)
    unit, labels = torch.from_numpy(evidence.unit), torch.from_numpy(evidence.labels)
    margin = torch.zeros(len(labels))
    for number in range(FOLDS):
        seen, left = (torch.from_numpy(np.flatnonzero(mask)) for mask in (fold != number, fold == number))
        seed = FOLDS * evidence.seed + number
        rows = learnt(unit[seen], labels[seen], num_classes=evidence.num_classes, seed=seed)
        margin[left] = clean_logit(unit[left], labels[left], rows)
    found: NDArray[np.float32] = -margin.numpy()
    return Opinion(found > 0, found)


def learnt(unit: Tensor, labels: Tensor, *, num_classes: int, seed: int) -> Tensor:
    """(2, C, d) positive and negative rows."""
    draw = torch.Generator().manual_seed(seed)
    means = torch.zeros(num_classes, unit.shape[1]).index_add_(0, labels, unit)
    rows = torch.stack([functional.normalize(means), functional.normalize(means.sum(0), dim=0).expand_as(means)])
    rows = rows.clone().requires_grad_()
    optimiser = torch.optim.Adam([rows], lr=LR)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(labels), generator=draw).split(BATCH):
            other = (labels[batch] + torch.randint(1, num_classes, batch.shape, generator=draw)) % num_classes
            loss = loss_of(unit[batch], labels[batch], other, rows)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return rows.detach()


def loss_of(unit: Tensor, labels: Tensor, other: Tensor, rows: Tensor) -> Tensor:
    """Loss of a batch: both detectors and the classifier."""
    clean, not_other = clean_logit(unit, labels, rows), -clean_logit(unit, other, rows)
    logits = SCALE * unit @ functional.normalize(rows[0], dim=1).T
    return (
        functional.softplus(-clean).mean()
        + functional.softplus(-not_other).mean()
        + functional.cross_entropy(logits, labels)
    )


def clean_logit(unit: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
    """(n,) log odds that the label is clean: the difference of both similarities."""
    positive, negative = functional.normalize(rows, dim=2)[:, labels]
    return SCALE * (unit * (positive - negative)).sum(1)
