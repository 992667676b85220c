"""By what the logits of an ensemble's members are divided, so that its probabilities are as sure as they are right.

Temperature scaling (Guo et al., ICML 2017, arXiv 1706.04599) for the mean over crops and members: a mean is less sure than its
parts, so a temperature that is right for each member is not right for all. Each member first gets its own, as classifiers of
different making differ by more than ten times; then all are moved together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.export.ood import MemberOutput

TEMPERATURES = np.geomspace(1 / 32, 32, 81)  # tried; 1 in the middle, each 9 % above the last
ONE = len(TEMPERATURES) // 2
LEAST = 1e-12  # probability, for its logarithm


def label_probabilities(outputs: Sequence[MemberOutput], label: Tensor) -> Tensor:
    """(B, M, T) what each member gives the label (B,) of each photo at each temperature; mean over its crops, never B x C x T."""
    return torch.stack(
        [torch.stack([_probability(output, label, float(t)) for t in TEMPERATURES], 1) for output in outputs], 1
    )


def _probability(output: MemberOutput, label: Tensor, temperature: float) -> Tensor:
    logits = output.logits / temperature
    own = logits.gather(2, label.expand(len(logits), -1)[..., None])[..., 0]
    return (own - logits.logsumexp(2)).exp().mean(0)


def nll(probabilities: NDArray[np.float32], weights: NDArray[np.float64], tried: Sequence[int]) -> float:
    """Mean negative log likelihood of the labels, by the weighted mean of the members at these temperatures each.

    Args:
        probabilities: (N, M, T) of the labels. weights: (M,). tried: (M,) positions in TEMPERATURES.
    """
    own = probabilities[:, np.arange(len(tried)), list(tried)].astype(np.float64)
    return float(-np.log(np.maximum(own @ weights, LEAST)).mean())


def nll_with_prior(
    probabilities: NDArray[np.float32], weights: NDArray[np.float64], tried: Sequence[int], *, num_classes: int
) -> float:
    """The surprise once one more photo, as these are, turns out to have another label (the rule of succession).

    On photos that are all recognised, the colder the better; that one keeps a few of them from promising certainty.
    """
    own = probabilities[:, np.arange(len(tried)), list(tried)].astype(np.float64) @ weights
    other = -np.log(np.maximum((1 - own) / (num_classes - 1), LEAST)).mean()
    return (nll(probabilities, weights, tried) * len(own) + float(other)) / (len(own) + 1)


def fit_temperatures(
    probabilities: NDArray[np.float32], weights: NDArray[np.float64], *, num_classes: int
) -> tuple[tuple[float, ...], tuple[float, float]]:
    """(M,) the temperatures of the members; and the surprise at 1, and at them, which is never more.

    Args:
        probabilities: (N, M, T) of the labels, N > 0. weights: (M,). num_classes: at least 2.
    """
    one, last = [ONE] * len(weights), len(TEMPERATURES) - 1
    own = [min(range(last + 1), key=lambda each: nll_with_prior(alone, np.ones(1), [each], num_classes=num_classes))
           for alone in np.split(probabilities, len(one), axis=1)]  # fmt: skip
    ways = [one, *([min(max(each + step, 0), last) for each in own] for step in range(-last, last + 1))]
    before = nll(probabilities, weights, one)
    better = [way for way in ways if nll(probabilities, weights, way) <= before]
    best = min(better, key=lambda way: nll_with_prior(probabilities, weights, way, num_classes=num_classes))
    sure = (round(before, 6), round(nll(probabilities, weights, best), 6))
    return tuple(round(float(TEMPERATURES[each]), 6) for each in best), sure
