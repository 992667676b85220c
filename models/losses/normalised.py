"""Normalised losses L(y) / sum_k L(k), which are symmetric for any L, and their sums with a passive loss.

Ma et al., ICML 2020 (arXiv 2006.13554) call a loss active if it only raises the label's probability, and passive if it
also lowers those of other classes. The sum of one of each, such as `nce+mae`, fits well and tolerates noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

from torch import Tensor

from models.errors import ConfigError
from models.losses.asymmetric import AEL, AGCE, AMSE, AUL
from models.losses.base import LOSSES, Loss, LossBatch
from models.losses.cross_entropy import MAE, RCE, Weight, focal
from models.losses.lq import Power
from models.losses.softmax import SumFloored, SumFocal, SumLog, SumPower, one_minus_exp
from models.recipe.registry import Component, Parameter, Range, parameters_of

PAPER = "Ma et al., ICML 2020 (arXiv 2006.13554), equation 3"


class Symmetric(Loss):
    """A loss whose values sum to a constant over all labels.

    It tolerates symmetric noise up to the rate 1 - 1/C. For class-dependent noise Ma et al. also assume that the value
    of a wrong label is at most 1 / (C - 1). A normalised loss does not enforce this, so there the ratio 1 is claimed,
    not proved.
    """

    def asymmetry_ratio(self) -> float:
        return 1.0


@LOSSES.register("nce", paper=PAPER)
class NCE(Symmetric):
    """log p_y / sum_k log p_k."""

    terms = (SumLog(),)

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)

    def value(self, batch: LossBatch) -> Tensor:
        return batch.log_p / batch.sum(SumLog())


@LOSSES.register("nfl", paper=PAPER)
class NFL(Symmetric):
    """(1 - p_y)^gamma log p_y / sum_k (1 - p_k)^gamma log p_k.

    Args:
        gamma: >= 0; published .5.
        detach_factor: treat the powers as constants in the gradient, in numerator and denominator, as the published
            code does.
    """

    def __init__(self, num_classes: int, gamma: Weight = 0.5, detach_factor: bool = False) -> None:
        super().__init__(num_classes)
        self.term = SumFocal(gamma, detach_factor)
        self.terms = (self.term,)

    def value(self, batch: LossBatch) -> Tensor:
        above = focal(batch, gamma=self.term.gamma, detach_factor=self.term.detach_factor)
        return above / batch.sum(self.term)


@LOSSES.register("ngce", paper=PAPER + ", applied to the loss of Zhang and Sabuncu 2018")
class NGCE(Symmetric):
    """(1 - p_y^q) / (C - sum_k p_k^q).

    Args:
        q: in (0, 1].
    """

    def __init__(self, num_classes: int, q: Power = 0.7) -> None:
        super().__init__(num_classes)
        self.q = q
        self.terms = (SumPower(q),)

    def value(self, batch: LossBatch) -> Tensor:
        return one_minus_exp(self.q * batch.log_p) / (batch.num_classes - batch.sum(SumPower(self.q)))


@LOSSES.register("nmae", paper=PAPER)
class NMAE(Symmetric):
    """(1 - p_y) / (C - 1)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)

    def value(self, batch: LossBatch) -> Tensor:
        return batch.miss / (batch.num_classes - 1)


@LOSSES.register("nnce", paper="Ye et al., NeurIPS 2023 (active negative losses), equation 9")
class NNCE(Symmetric):
    """1 - (A + log p_y) / sum_k (A + log p_k), A = -ln min_prob, with -A in place of log p_k if p_k < min_prob.

    Args:
        min_prob: in (0, 1 / C); default: the smaller of the published 1e-7 and .01 / C^2, because at 50,030 classes 1 /
            C is too close to 1e-7.
    """

    def __init__(
        self, num_classes: int, min_prob: Annotated[float, Range(0, 1, open_low=True, open_high=True)] | None = None
    ) -> None:
        super().__init__(num_classes)
        if min_prob and min_prob * num_classes >= 1:
            raise ConfigError(
                f"loss.params.min_prob: {min_prob} is not below 1 / {num_classes}, so the denominator is 0 at equal "
                "probabilities; lower it, or leave it out"
            )
        self.term = SumFloored(-math.log(min_prob or min(1e-7, 0.01 / num_classes**2)))
        self.terms = (self.term,)

    def value(self, batch: LossBatch) -> Tensor:
        return 1 - (batch.log_p + self.term.depth).clamp(min=0) / batch.sum(self.term)


class Sum(Loss):
    """alpha first + beta second, computed in one pass over the logits.

    Args:
        alpha, beta: weights of the first and the second loss, >= 0.
    """

    def __init__(self, num_classes: int, first: Loss, second: Loss, *, alpha: float, beta: float) -> None:
        super().__init__(num_classes)
        self.first, self.second = first, second
        self.alpha, self.beta = alpha, beta
        self.terms = tuple(dict.fromkeys((*first.terms, *second.terms)))

    def value(self, batch: LossBatch) -> Tensor:
        return self.alpha * self.first.value(batch) + self.beta * self.second.value(batch)

    def asymmetry_ratio(self) -> float:
        weighted = ((self.alpha, self.first), (self.beta, self.second))
        return min((part.asymmetry_ratio() for weight, part in weighted if weight), default=0.0)


def _sum(
    num_classes: int, /, *, classes: tuple[type[Loss], type[Loss]], defaults: Mapping[str, float], **given: Any
) -> Sum:
    values = {**defaults, **given}
    first, second = (
        cls(num_classes, **{k: v for k, v in values.items() if k in parameters_of(cls)}) for cls in classes
    )
    return Sum(num_classes, first, second, alpha=values["alpha"], beta=values["beta"])


def _register_sum(
    name: str, first: type[Loss], second: type[Loss], *, paper: str, formula: str = "", **defaults: float
) -> None:
    own = {**parameters_of(first), **parameters_of(second)}
    own |= {key: Parameter(Weight, 1.0) for key in ("alpha", "beta")}
    own |= {key: Parameter(own[key].annotation, value) for key, value in defaults.items()}
    defaults = {"alpha": 1.0, "beta": 1.0} | defaults
    build: Callable[..., Any] = partial(_sum, classes=(first, second), defaults=defaults)
    formula = formula or "alpha {} + beta {}".format(*name.split("+"))
    LOSSES.components[name] = Component(build, paper, own, formula)


for _name, _active in (("nce", NCE), ("nfl", NFL)):
    _register_sum(f"{_name}+mae", _active, MAE, paper=PAPER, alpha=1, beta=1)
    _register_sum(f"{_name}+rce", _active, RCE, paper=PAPER, alpha=1, beta=1)
    _register_sum(f"{_name}+agce", _active, AGCE, paper="Zhou et al., ICML 2021 (arXiv 2106.03110)", beta=4, a=6, q=1.5)
    _register_sum(f"{_name}+aul", _active, AUL, paper="Zhou et al., ICML 2021 (arXiv 2106.03110)", beta=4, a=6.3, q=1.5)
    _register_sum(f"{_name}+ael", _active, AEL, paper="Zhou et al., ICML 2021 (arXiv 2106.03110)", beta=4, a=5)
_register_sum(
    "anl_ce", NCE, NNCE, paper="Ye et al., NeurIPS 2023 (active negative losses)", formula="alpha nce + beta nnce",
    alpha=5, beta=5,
)  # fmt: skip
_register_sum(
    "nce+amse", NCE, AMSE, paper="JAL, ICCV 2025; beta .1 on our sum equals its 1 on the mean of 10 classes", beta=0.1
)
