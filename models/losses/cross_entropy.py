"""Cross-entropy and other losses of p_y alone."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from models.losses.base import LOSSES, Loss, LossBatch
from models.losses.softmax import SumLog
from models.recipe.registry import Range

Positive = Annotated[float, Range(0, open_low=True)]
Weight = Annotated[float, Range(0)]


@LOSSES.register("ce", paper="label smoothing: Szegedy et al., CVPR 2016, section 7")
class CrossEntropy(Loss):
    """-(1 - s) log p_y - s mean_k log p_k; s = 0 is plain cross-entropy.

    Args:
        label_smoothing: s, in [0, 1).
    """

    def __init__(self, num_classes: int, label_smoothing: Annotated[float, Range(0, 1, open_high=True)] = 0.0) -> None:
        super().__init__(num_classes)
        self.label_smoothing = label_smoothing
        self.terms = (SumLog(),) if label_smoothing else ()

    def value(self, batch: LossBatch) -> Tensor:
        if not self.label_smoothing:
            return -batch.log_p
        s = self.label_smoothing
        return -(1 - s) * batch.log_p - s / batch.num_classes * batch.sum(SumLog())


@LOSSES.register("focal", paper="Lin et al., ICCV 2017, equation 4")
class Focal(Loss):
    """-(1 - p_y)^gamma log p_y.

    Args:
        gamma: >= 0; 0 is cross-entropy. The noisy-label literature uses .5.
        detach_factor: treat the power as a constant in the gradient, as the published code of the robust losses does.
    """

    def __init__(self, num_classes: int, gamma: Weight = 0.5, detach_factor: bool = False) -> None:
        super().__init__(num_classes)
        self.gamma, self.detach_factor = gamma, detach_factor

    def value(self, batch: LossBatch) -> Tensor:
        return -focal(batch, gamma=self.gamma, detach_factor=self.detach_factor)


def focal(batch: LossBatch, *, gamma: float, detach_factor: bool) -> Tensor:
    """(N,) (1 - p_y)^gamma log p_y."""
    tiny = torch.finfo(batch.log_p.dtype).tiny  # a power below 1 has an infinite slope at p_y = 1
    factor = batch.miss.clamp(min=tiny) ** gamma
    return (factor.detach() if detach_factor else factor) * batch.log_p


@LOSSES.register("mae", paper="Ghosh et al., AAAI 2017, section 4")
class MAE(Loss):
    """scale (1 - p_y): symmetric and noise-tolerant, but slow to fit many classes.

    Args:
        scale: > 0; 2 gives the published sum over the classes of |e_y - p|.
    """

    def __init__(self, num_classes: int, scale: Positive = 1.0) -> None:
        super().__init__(num_classes)
        self.factor = scale

    def value(self, batch: LossBatch) -> Tensor:
        return self.factor * batch.miss

    def asymmetry_ratio(self) -> float:
        return 1.0


@LOSSES.register("rce", paper="Wang et al., ICCV 2019 (arXiv 1908.06112), equation 6")
class RCE(Loss):
    """-A (1 - p_y), A = ln 1e-4: cross-entropy with prediction and label exchanged, and A in place of log 0."""

    LOG_ZERO = math.log(1e-4)  # the paper prints -4, the decimal logarithm; its code uses the natural one

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)

    def value(self, batch: LossBatch) -> Tensor:
        return -self.LOG_ZERO * batch.miss

    def asymmetry_ratio(self) -> float:
        return 1.0


@LOSSES.register("sce", paper="Wang et al., ICCV 2019 (arXiv 1908.06112), equation 7")
class SCE(Loss):
    """alpha CE + beta RCE.

    Args:
        alpha, beta: >= 0; published (.1, 1) at 10 classes, (6, .1) at 100.
    """

    def __init__(self, num_classes: int, alpha: Weight = 0.1, beta: Weight = 1.0) -> None:
        super().__init__(num_classes)
        self.alpha, self.beta = alpha, beta

    def value(self, batch: LossBatch) -> Tensor:
        return -self.alpha * batch.log_p - self.beta * RCE.LOG_ZERO * batch.miss

    def learnable(self) -> dict[str, Range]:
        return {"alpha": Range(0), "beta": Range(0)}

    def asymmetry_ratio(self) -> float:
        return 0.0 if self.alpha else 1.0


@LOSSES.register("polysoft", paper="Shu et al. 2020 (arXiv 2002.06482), section 3; Gong et al., AAAI 2018")
class PolySoft(Loss):
    """(d - 1) lam / d [1 - (1 - l / lam)^(d / (d - 1))] if l = -log p_y < lam, else (d - 1) lam / d.

    A sample with the cross-entropy l has the weight (1 - l / lam)^(1 / (d - 1)), and 0 beyond lam. With lam <= ln C an
    untrained network has no gradient at all.

    Args:
        lam: cross-entropy in nats beyond which a sample has no weight, > 0; default 2 ln C (ours: half weight at the
            start).
        d: > 1; with 2 the weight falls linearly, near 1 only the easiest samples count.
    """

    def __init__(
        self, num_classes: int, lam: Positive | None = None, d: Annotated[float, Range(1, open_low=True)] = 2.0
    ) -> None:
        super().__init__(num_classes)
        self.lam = 2 * math.log(num_classes) if lam is None else lam
        self.d = d

    def value(self, batch: LossBatch) -> Tensor:
        left = (1 + batch.log_p / self.lam).clamp(min=0)
        value: Tensor = (self.d - 1) * self.lam / self.d * (1 - left ** (self.d / (self.d - 1)))
        return value

    def learnable(self) -> dict[str, Range]:
        return {"lam": Range(math.log(self.num_classes)), "d": Range(1)}


@LOSSES.register("eps_ce+mae", paper="Wang et al., NeurIPS 2024 (epsilon-softmax), equations 3 and 8")
class EpsilonCrossEntropy(Loss):
    """alpha CE of epsilon-softmax + beta MAE; epsilon-softmax adds m to the largest probability and divides by 1 + m.

    Args:
        m: >= 0; 0 is plain softmax. Published 1e5 at 10 classes, 1e4 at 100 and 1e3 on real noise.
        alpha, beta: >= 0; published (.01, 5) at 10 classes, (.1 to .0075, 1) at 100.
        floor: added to the probability before the logarithm; the published 1e-8 removes the gradient of very improbable
            labels.
    """

    def __init__(
        self, num_classes: int, m: Weight = 1e5, alpha: Weight = 0.01, beta: Weight = 5.0, floor: Weight = 0.0
    ) -> None:
        super().__init__(num_classes)
        self.m, self.alpha, self.beta, self.floor = m, alpha, beta, floor

    def value(self, batch: LossBatch) -> Tensor:
        # 0 for the other rows: with m = 0 they would give log(0), whose slope is NaN even if the value is not used.
        miss = torch.where(batch.is_top, batch.miss, 0)
        top = torch.log1p(-miss / (1 + self.m))  # log((p_y + m) / (1 + m))
        log_p = torch.where(batch.is_top, top, batch.log_p - math.log1p(self.m))
        if self.floor:
            log_p = torch.log(log_p.exp() + self.floor)
        return -self.alpha * log_p + self.beta * batch.miss

    def asymmetry_ratio(self) -> float:
        return 0.0 if self.alpha else 1.0
