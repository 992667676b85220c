"""Temperature scaling (Guo et al., ICML 2017, arXiv 1706.04599) of an ensemble, for the mean over crops and members.

A mean is less confident than its parts, so temperatures that calibrate each member do not calibrate the ensemble. Each
member first gets its own temperature, because those of different methods differ by more than a factor of ten; then all
are scaled by a common factor.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.export.ood import MemberOutput

HALVED = 8  # steps in which a temperature is halved, so each is 9 %
TEMPERATURES = np.geomspace(1 / 32, 32, 10 * HALVED + 1)
ONE = len(TEMPERATURES) // 2  # position of temperature 1
PIECE = 32  # photos at a time; with 50,030 classes their logits take 6 MB and stay in the cache
MIN_PROBABILITY = 1e-12  # floor before taking the logarithm


def label_probabilities(outputs: Sequence[MemberOutput], label: Tensor) -> Tensor:
    """(B, M, T) probability of each label (B,) by member and temperature, averaged over crops; avoids B x C x T."""
    return torch.stack([_of_member(output.logits, label) for output in outputs], 1)


def _of_member(logits: Tensor, label: Tensor) -> Tensor:
    """(B, T) probabilities of the labels from logits (n, B, C)."""
    crops, photos, _ = logits.shape
    rows, labels = logits.flatten(0, 1), label.repeat(crops)
    parts = [_probabilities(*pair) for pair in zip(rows.split(PIECE), labels.split(PIECE), strict=True)]
    return torch.cat(parts).view(crops, photos, -1).mean(0)


def _probabilities(logits: Tensor, label: Tensor) -> Tensor:
    """(B, T) probabilities of the labels (B,) from logits (B, C).

    Half the temperature squares each exponential, so only HALVED temperatures need exponentials of their own. Ten
    squarings multiply a rounding error by 1,024, but only that of small terms: the largest one is 1.
    """
    below = logits - logits.amax(1, keepdim=True)
    own = below.gather(1, label[:, None])[:, 0]
    sums = torch.empty(len(TEMPERATURES), len(logits), device=logits.device)
    for first in range(HALVED):
        powers = (below / float(TEMPERATURES[-1 - first])).exp_()
        for number in range(len(TEMPERATURES) - 1 - first, -1, -HALVED):
            torch.sum(powers, 1, out=sums[number])
            powers.square_()
    temperatures = torch.as_tensor(TEMPERATURES, dtype=logits.dtype, device=logits.device)
    return (own[:, None] / temperatures - sums.T.log()).exp()


def nll(probabilities: NDArray[np.float32], weights: NDArray[np.float64], tried: Sequence[int]) -> float:
    """Mean negative log-likelihood of the labels, by the weighted mean of the members at these temperatures.

    Args:
        probabilities: (N, M, T) of the labels. weights: (M,). tried: (M,) positions in TEMPERATURES.
    """
    own = probabilities[:, np.arange(len(tried)), list(tried)].astype(np.float64)
    return float(-np.log(np.maximum(own @ weights, MIN_PROBABILITY)).mean())


def nll_with_prior(
    probabilities: NDArray[np.float32], weights: NDArray[np.float64], tried: Sequence[int], *, num_classes: int
) -> float:
    """NLL with an add-one prior: it includes one more, average photo that has another label (rule of succession).

    If all photos are recognised, the plain NLL falls with the temperature; the additional photo keeps a few photos from
    leading to certainty.
    """
    own = probabilities[:, np.arange(len(tried)), list(tried)].astype(np.float64) @ weights
    other = -np.log(np.maximum((1 - own) / (num_classes - 1), MIN_PROBABILITY)).mean()
    return (nll(probabilities, weights, tried) * len(own) + float(other)) / (len(own) + 1)


def fit_temperatures(
    probabilities: NDArray[np.float32], weights: NDArray[np.float64], *, num_classes: int
) -> tuple[tuple[float, ...], tuple[float, float]]:
    """(M,) temperatures of the members; and the NLL at temperature 1 and at these temperatures, which is never larger.

    Args:
        probabilities: (N, M, T) of the labels, N > 0. weights: (M,). num_classes: at least 2.
    """
    one, last = [ONE] * len(weights), len(TEMPERATURES) - 1
    own = [min(range(last + 1), key=lambda each: nll_with_prior(alone, np.ones(1), [each], num_classes=num_classes))
           for alone in np.split(probabilities, len(one), axis=1)]  # fmt: skip
    candidates = [one, *([min(max(each + step, 0), last) for each in own] for step in range(-last, last + 1))]
    before = nll(probabilities, weights, one)
    better = [each for each in candidates if nll(probabilities, weights, each) <= before]
    best = min(better, key=lambda each: nll_with_prior(probabilities, weights, each, num_classes=num_classes))
    after = nll(probabilities, weights, best)
    return tuple(round(float(TEMPERATURES[each]), 6) for each in best), (round(before, 6), round(after, 6))
