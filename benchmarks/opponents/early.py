"""Heads trained with losses that resist wrong labels: GCE (arXiv 1805.07836) out of fold, ELR (arXiv 2007.00151) in sample."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.data.samplers import folds
from models.networks.network import Head
from opponents.evidence import Evidence, Opinion, outvoted

Q = 0.7  # of GCE, as published
BETA, STRENGTH = 0.7, 3.0  # of ELR, as published for ten classes
FOLDS, BATCH, LR, WEIGHT_DECAY = 5, 256, 1e-3, 1e-2
EPOCHS, ELR_EPOCHS = 8, 25


def gce(evidence: Evidence) -> Opinion:
    """Opinion by the probabilities of GCE heads that did not see the photo."""
    ids = np.random.default_rng(evidence.seed).permutation(len(evidence.labels)).astype(str).astype(object)
    fold = folds(evidence.labels, ids, num_folds=FOLDS)
    probs = np.zeros(evidence.probs.shape, np.float32)
    for number in range(FOLDS):
        head, _ = trained(evidence, np.flatnonzero(fold != number), epochs=EPOCHS, seed=FOLDS * evidence.seed + number)
        with torch.inference_mode():
            views = [head(torch.from_numpy(view[fold == number])).logits.softmax(1) for view in evidence.views]
        probs[fold == number] = torch.stack(views).mean(0).numpy()
    return outvoted(np.log(np.maximum(probs, 1e-12)), evidence.labels)


def elr(evidence: Evidence) -> Opinion:
    """Opinion by the running mean of what one head said about its own training photos, which ELR holds it to."""
    _, said = trained(
        evidence, np.arange(len(evidence.labels)), epochs=ELR_EPOCHS, seed=evidence.seed, strength=STRENGTH
    )
    return outvoted(np.log(np.maximum(said.numpy(), 1e-12)), evidence.labels)


def trained(
    evidence: Evidence, rows: NDArray[np.int64], *, epochs: int, seed: int, strength: float | None = None
) -> tuple[Head, Tensor]:
    """A head after some epochs, by ELR of this strength or else by GCE; and ELR's running mean (n, C) of the photos."""
    torch.manual_seed(seed)
    views, target = torch.from_numpy(evidence.views[:, rows]), torch.from_numpy(evidence.labels[rows])
    head = Head(views.shape[2], num_classes=evidence.num_classes)
    said = torch.zeros(len(rows), evidence.num_classes)
    optimiser = torch.optim.AdamW(head.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    batches = -(-len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * batches)
    for _ in range(epochs):
        for batch in torch.randperm(len(rows)).tensor_split(batches):
            logits = head(views[torch.randint(2, (len(batch),)), batch]).logits
            if strength is None:
                loss = gce_loss(logits, target[batch])
            else:
                said[batch] = remembered(said[batch], logits.detach())
                loss = functional.cross_entropy(logits, target[batch]) + strength * regulariser(logits, said[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return head.eval(), said


def gce_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean of (1 - p^Q) / Q."""
    log_p = logits.log_softmax(1).gather(1, target[:, None])
    return (-torch.expm1(Q * log_p) / Q).mean()


def remembered(said: Tensor, logits: Tensor) -> Tensor:
    """(n, C) running mean of the clipped and renormalised probabilities."""
    p = logits.softmax(1).clamp(1e-4, 1 - 1e-4)
    return BETA * said + (1 - BETA) * p / p.sum(1, keepdim=True)


def regulariser(logits: Tensor, said: Tensor) -> Tensor:
    """Mean of log (1 - <p, running mean>)."""
    p = logits.softmax(1).clamp(1e-4, 1 - 1e-4)
    return (1 - (said * p).sum(1)).log().mean()
