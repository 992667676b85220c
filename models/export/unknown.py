"""Is a photo of the assortment at all? Scores of it, and the module that makes `known` of one; no state grows with the classes.

probability  of the best class, in the mean of the ensemble (Hendrycks and Gimpel, ICLR 2017, arXiv 1610.02136)
energy       log of the sum of exp(logits) (Liu et al., NeurIPS 2020, arXiv 2010.03759)
logit        the largest (Hendrycks et al., ICML 2022, arXiv 1911.11132)
angle        the largest logit over the length of the embedding: length of the best class's row times the cosine to it

Logits are those at the calibrated temperature. All but the first are means over crops and members.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Look(NamedTuple):
    """What one member sees in the n crops of B photos."""

    logits: Tensor  # (n, B, C)
    embedding: Tensor  # (n, B, 512)


def energy(look: Look) -> Tensor:
    """(n, B, 1)."""
    return look.logits.logsumexp(2, keepdim=True)


def logit(look: Look) -> Tensor:
    """(n, B, 1)."""
    return look.logits.amax(2, keepdim=True)


def angle(look: Look) -> Tensor:
    """(n, B, 1)."""
    return logit(look) / look.embedding.norm(dim=2, keepdim=True).clamp_min(1e-12)


PROBABILITY = "probability"
ACCEPTED = 0.5  # of `known`; part of the contract with clients
OF_LOOKS: Mapping[str, Callable[[Look], Tensor]] = {"angle": angle, "energy": energy, "logit": logit}
SCORES = (PROBABILITY, *OF_LOOKS)


@dataclass(frozen=True)
class Calibration:
    """What an ensemble's answers are divided by, and how its scores become `known`.

    temperature: one for each member; None: 1. slope: `known` is sigmoid(slope (score - threshold)); None: the score itself.
    """

    temperature: tuple[float, ...] | None = None
    score: str = PROBABILITY
    slope: float | None = None
    threshold: float = 0.5

    def of(self, member: int) -> float:
        """The temperature of one member."""
        return 1.0 if self.temperature is None else self.temperature[member]


UNCALIBRATED = Calibration()


class Known(nn.Module):
    """(B, 1) in [0, 1], at least 0.5 for what is accepted."""

    slope: Tensor
    threshold: Tensor

    def __init__(self, calibration: Calibration) -> None:
        super().__init__()
        self.score, self.is_calibrated = calibration.score, calibration.slope is not None
        self.register_buffer("slope", torch.tensor(calibration.slope or 1.0))
        self.register_buffer("threshold", torch.tensor(calibration.threshold))

    def forward(self, looks: Sequence[Look], mean: Tensor, weights: Tensor) -> Tensor:
        """Of the members' looks, their mean probabilities (B, C) and their weights (M, 1, 1)."""
        score = score_of(self.score, looks, mean, weights)
        return torch.sigmoid(self.slope * (score - self.threshold)) if self.is_calibrated else score


def score_of(name: str, looks: Sequence[Look], mean: Tensor, weights: Tensor) -> Tensor:
    """(B, 1) the score of that name; the larger, the more likely a product of the assortment."""
    if name == PROBABILITY:
        return mean.amax(1, keepdim=True)
    return (weights * torch.stack([OF_LOOKS[name](look).mean(0) for look in looks])).sum(0)
