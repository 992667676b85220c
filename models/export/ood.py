"""Out-of-distribution detection: scores that a photo shows a product of the assortment, and the module for `known`.

probability  probability of the best class, averaged over members (Hendrycks and Gimpel, ICLR 2017, arXiv 1610.02136)
energy       log of the sum of exp(logits) (Liu et al., NeurIPS 2020, arXiv 2010.03759)
logit        largest logit (Hendrycks et al., ICML 2022, arXiv 1911.11132)
angle        largest logit divided by the length of the embedding: length of the best class's row times the cosine to it
discriminant largest linear discriminant of the members' sum, which has a row for each class (models.export.discriminant)

Logits are taken at the calibrated temperature. `energy`, `logit` and `angle` are averaged over crops and members.
models.export.calibrate describes the photos that replace unknown products when a score is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.evaluation.bootstrap import auroc
from models.export.discriminant import Discriminant, Rows


class MemberOutput(NamedTuple):
    """Output of one member for n crops of B photos."""

    logits: Tensor  # (n, B, C)
    embedding: Tensor  # (n, B, 512)


def energy(output: MemberOutput) -> Tensor:
    """(n, B, 1) log of the sum of exp(logits)."""
    return output.logits.logsumexp(2, keepdim=True)


def logit(output: MemberOutput) -> Tensor:
    """(n, B, 1) largest logit."""
    return output.logits.amax(2, keepdim=True)


def angle(output: MemberOutput) -> Tensor:
    """(n, B, 1) largest logit divided by the length of the embedding."""
    return logit(output) / output.embedding.norm(dim=2, keepdim=True).clamp_min(1e-12)


PROBABILITY = "probability"
NEWTON_STEPS = 50
OUTPUT_SCORES: Mapping[str, Callable[[MemberOutput], Tensor]] = {"angle": angle, "energy": energy, "logit": logit}
DISCRIMINANT = "discriminant"
SCORES = (PROBABILITY, *OUTPUT_SCORES, DISCRIMINANT)


@dataclass(frozen=True)
class Calibration:
    """Temperatures of an ensemble, and the parameters of `known`.

    temperature: one per member; None: 1. score: name of the score. slope, threshold: `known` is sigmoid(slope (score -
    threshold)), or the score itself if the slope is None. discriminants: one per member, which only the score of that
    name needs; empty: that score is not available.
    """

    temperature: tuple[float, ...] | None = None
    score: str = PROBABILITY
    slope: float | None = None
    threshold: float = 0.5
    discriminants: tuple[Discriminant, ...] = field(default=(), compare=False, repr=False)

    def temperature_of(self, member: int) -> float:
        """Temperature of one member."""
        return 1.0 if self.temperature is None else self.temperature[member]


UNCALIBRATED = Calibration()


class KnownScore(nn.Module):
    """Module that computes `known`: (B, 1) in [0, 1], at least 0.5 for accepted photos."""

    slope: Tensor
    threshold: Tensor

    def __init__(self, calibration: Calibration) -> None:
        super().__init__()
        self.score, self.is_calibrated = calibration.score, calibration.slope is not None
        self.register_buffer("slope", torch.tensor(calibration.slope or 1.0))
        self.register_buffer("threshold", torch.tensor(calibration.threshold))
        used = calibration.discriminants if self.score == DISCRIMINANT else ()
        self.discriminants = nn.ModuleList(Rows(each) for each in used)

    @property
    def rounding(self) -> float:
        """Change of `known` by a float32 rounding error of the score at the threshold, where the slope is steepest."""
        terms = [float(each.rows.bias.detach().abs().amax()) for each in self.discriminants if isinstance(each, Rows)]
        return float(self.slope) / 4 * max(abs(float(self.threshold)), *terms, 0.0) * torch.finfo(torch.float32).eps

    def forward(self, outputs: Sequence[MemberOutput], mean: Tensor, weights: Tensor) -> Tensor:
        """`known` from the members' outputs, their mean probabilities (B, C) and their weights (M, 1, 1)."""
        if self.score == DISCRIMINANT:
            score = discriminants(self.discriminants, outputs, weights).amax(1, keepdim=True)
        else:
            score = score_of(self.score, outputs, mean, weights)
        return torch.sigmoid(self.slope * (score - self.threshold)) if self.is_calibrated else score


def score_of(name: str, outputs: Sequence[MemberOutput], mean: Tensor, weights: Tensor) -> Tensor:
    """(B, 1) score of this name; the larger, the more likely a product of the assortment."""
    if name == PROBABILITY:
        return mean.amax(1, keepdim=True)
    return (weights * torch.stack([OUTPUT_SCORES[name](output).mean(0) for output in outputs])).sum(0)


def discriminants(
    modules: Sequence[nn.Module] | nn.ModuleList, outputs: Sequence[MemberOutput], weights: Tensor
) -> Tensor:
    """(B, C) weighted sum of the members' discriminants, from their modules."""
    tables = [module(output.embedding) for module, output in zip(modules, outputs, strict=True)]
    return (weights * torch.stack(tables)).sum(0)


class Separation(NamedTuple):
    """AUROC in [0, 1] with which a score separates known photos from each kind of out-of-distribution photos."""

    without_class: float
    in_tiles: float

    @property
    def mean(self) -> float:
        """Mean over both kinds of out-of-distribution photos."""
        return (self.without_class + self.in_tiles) / 2


def separation_of(known: NDArray[np.float64], masked: NDArray[np.float64], tiles: NDArray[np.float64]) -> Separation:
    """Separation by one score, from its values for photos and for both kinds of out-of-distribution photos."""
    return Separation(*(round(auroc(known, ood), 6) for ood in (masked, tiles)))


class Threshold(NamedTuple):
    """Parameters of `known` = sigmoid(slope (score - threshold))."""

    slope: float
    threshold: float


def fit_threshold(known: NDArray[np.float64], ood: NDArray[np.float64], *, accept: float) -> Threshold | None:
    """Slope of a logistic fit with equal weight for both groups, and the threshold that accepts this share of `known`.

    The threshold is midway between the last rejected and the first accepted score. None if known photos do not have
    larger scores. The targets of the fit lie slightly inside (0, 1) (Platt 1999); otherwise the slope for groups that
    do not overlap would be infinite.
    """
    order = np.sort(known)
    cut = int((1 - accept) * len(order) + 1e-9)  # number of rejected photos
    spread = float(np.concatenate([known, ood]).std())
    below = order[cut - 1] if cut else order[0] - 1e-3 * spread
    slope = logistic_slope(known, ood)
    return Threshold(slope, float(order[cut] + below) / 2) if slope > 0 else None


def logistic_slope(known: NDArray[np.float64], ood: NDArray[np.float64]) -> float:
    """Slope of the log odds over the score, by Newton's method; 0 if all values are equal."""
    value, num = np.concatenate([known, ood]), np.array([len(known), len(ood)])
    centre, spread = value.mean(), value.std()
    if spread == 0:
        return 0.0
    each = np.repeat(0.5 / num, num)
    target = np.repeat([(num[0] + 1) / (num[0] + 2), 1 / (num[1] + 2)], num)
    columns, line = np.stack([(value - centre) / spread, np.ones(len(value))], 1), np.zeros(2)
    for _ in range(NEWTON_STEPS):
        p = (1 + np.tanh(columns @ line / 2)) / 2
        curvature = (columns * (each * p * (1 - p))[:, None]).T @ columns
        step = np.linalg.solve(curvature + 1e-9 * np.eye(2), columns.T @ (each * (p - target)))
        line = line - step / max(1.0, float(np.linalg.norm(step)))  # full steps may diverge if the groups are far apart
    return float(line[0] / spread)
