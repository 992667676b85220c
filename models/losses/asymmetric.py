"""Asymmetric losses: where clean labels dominate, the minimum of the loss is the clean label.

Let w_m be the largest weight that the noise gives to a label of one photo, and w_n the second largest. A loss l(p_y) is
asymmetric if w_m / w_n >= 1 / r, with r its asymmetry ratio (Zhou et al., ICML 2021, definitions 2 and 3).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from torch import Tensor

from models.losses.base import LOSSES, Loss, LossBatch
from models.losses.softmax import SumPower
from models.recipe.registry import Range

PAPER = "Zhou et al., ICML 2021 (arXiv 2106.03110), section 4"
Positive = Annotated[float, Range(0, open_low=True)]
AboveOne = Annotated[float, Range(1, open_low=True)]


@LOSSES.register("agce", paper=PAPER)
class AGCE(Loss):
    """((a + 1)^q - (a + p_y)^q) / q; bounded, so that one mislabelled photo cannot dominate a batch.

    Args:
        a: shift, > 0. A larger one is closer to mean absolute error: more robust, slower to fit.
        q: power, > 0; completely asymmetric for q >= 1.
    """

    def __init__(self, num_classes: int, a: Positive = 0.6, q: Positive = 0.6) -> None:
        super().__init__(num_classes)
        self.a, self.q = a, q

    def value(self, batch: LossBatch) -> Tensor:
        value: Tensor = ((self.a + 1) ** self.q - (self.a + batch.p) ** self.q) / self.q
        return value

    def asymmetry_ratio(self) -> float:
        return (self.a / (self.a + 1)) ** max(1 - self.q, 0.0)


@LOSSES.register("aul", paper=PAPER)
class AUL(Loss):
    """((a - p_y)^q - (a - 1)^q) / q.

    Args:
        a: > 1; at a = 1 a power below 1 has an infinite slope at p_y = 1.
        q: power, > 0; completely asymmetric for q <= 1.
    """

    def __init__(self, num_classes: int, a: AboveOne = 5.5, q: Positive = 3.0) -> None:
        super().__init__(num_classes)
        self.a, self.q = a, q

    def value(self, batch: LossBatch) -> Tensor:
        value: Tensor = ((self.a - 1 + batch.miss) ** self.q - (self.a - 1) ** self.q) / self.q
        return value

    def asymmetry_ratio(self) -> float:
        return ((self.a - 1) / self.a) ** max(self.q - 1, 0.0)


@LOSSES.register("ael", paper=PAPER)
class AEL(Loss):
    """exp(-p_y / a).

    Args:
        a: > 0; published 2.5.
    """

    def __init__(self, num_classes: int, a: Positive = 2.5) -> None:
        super().__init__(num_classes)
        self.a = a

    def value(self, batch: LossBatch) -> Tensor:
        return (-batch.p / self.a).exp()

    def asymmetry_ratio(self) -> float:
        return math.exp(-1 / self.a)


@LOSSES.register("anorm", paper="code of Zhou et al., ICML 2021 (arXiv 2106.03110)")
class ANorm(Loss):
    """(sum_k |a e_k - p_k|^p - (a - 1)^p) / p, e the one-hot label.

    Args:
        a: > 1; the defaults of a and p are ours.
        p: > 0.
    """

    def __init__(self, num_classes: int, a: AboveOne = 1.5, p: Positive = 0.9) -> None:
        super().__init__(num_classes)
        self.a, self.p = a, p
        self.terms = (SumPower(p),)

    def value(self, batch: LossBatch) -> Tensor:
        others = batch.sum(SumPower(self.p)) - (self.p * batch.log_p).exp()
        return ((self.a - 1 + batch.miss) ** self.p - (self.a - 1) ** self.p + others) / self.p


@LOSSES.register("amse", paper="JAL, ICCV 2025: asymmetric mean square error")
class AMSE(Loss):
    """sum_k (a e_k - p_k)^2 = sum_k p_k^2 - 2 a p_y + a^2. The paper takes the mean over k, which vanishes as 1 / C.

    Args:
        a: > 1; published 30 at 10 classes, 20 at 100, 5 on Clothing1M.
        mean: divide by C, as published.
    """

    def __init__(self, num_classes: int, a: AboveOne = 30.0, mean: bool = False) -> None:
        super().__init__(num_classes)
        self.a, self.mean = a, mean
        self.terms = (SumPower(2),)

    def value(self, batch: LossBatch) -> Tensor:
        # Written as (a - p_y)^2 + the sum over the other classes, so that nothing cancels near p_y = 1.
        value = (self.a - 1 + batch.miss) ** 2 + batch.sum(SumPower(2)) - batch.p**2
        return value / batch.num_classes if self.mean else value

    def asymmetry_ratio(self) -> float:
        return (self.a - 1) / (self.a + 1)  # against one wrong label; for several see `needed_dominance`


def asymmetry_ratio(loss: Loss) -> float:
    """r in [0, 1]: the loss is asymmetric if w_m / w_n >= 1 / r; 0 if no guarantee is known.

    1 for symmetric losses. For a sum it is the smallest r of its parts, a lower bound.
    """
    return loss.asymmetry_ratio()


def needed_dominance(loss: Loss, num_classes: int, kind: Literal["symmetric", "pair"]) -> float:
    """Smallest w_m / w_n at which the loss is asymmetric; infinite without a guarantee."""
    parts = [part for part in loss.modules() if isinstance(part, AMSE)]
    rivals = num_classes - 1 if kind == "symmetric" else 1
    needed = [(part.a + rivals) / (part.a - 1) for part in parts]  # JAL paper: (a + sum of w_i / w_n) / (a - 1)
    ratio = asymmetry_ratio(loss)
    return max([1 / ratio if ratio else math.inf, *needed])


def max_noise(loss: Loss, num_classes: int, kind: Literal["symmetric", "pair"]) -> float:
    """Noise rate in [0, 1) up to which the loss is noise-tolerant in theory; 0 without a guarantee.

    Args:
        kind: "symmetric": a wrong label is any other class, all equally likely; "pair": always the same one.
    """
    rivals = num_classes - 1 if kind == "symmetric" else 1
    return rivals / (rivals + needed_dominance(loss, num_classes, kind))
