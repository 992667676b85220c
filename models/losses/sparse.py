"""Sparse regularisation: sharpened logits, and a penalty on outputs that are not one-hot."""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Any

from torch import Tensor

from models.losses.base import LOSSES, Loss, LossBatch
from models.losses.cross_entropy import CrossEntropy, Focal, Positive, Weight
from models.losses.lq import GCE, Power
from models.losses.softmax import LogitShift, SumPower
from models.recipe.registry import Component, Range, parameters_of

PAPER = "Zhou et al., ICCV 2021 (arXiv 2108.00192), equation 8"


class SparseRegularised(Loss):
    """base(u, y) + lam(t) sum_k softmax(u)_k^p / C^(1 - p), u = z / (|z| tau).

    The penalty is 1 at equal probabilities and C^(p - 1) at one-hot outputs; lam(t) = lam rho^(t div every), t the
    epoch from 0.

    Args:
        tau: temperature, > 0; default: the smaller of .5, the published value at 10 classes, and 1 / ln(9 (C - 1)), so
            that p_y = .9 can be reached.
        p: power, in (0, 1]; published .1 at 10 classes, .01 at 100.
        lam: weight of the penalty, >= 0; the default equals the published 1.2 at 10 classes, given `rescale`.
        rho: growth factor of lam, >= 1; published 1.03 at 10 classes, 1.02 at 100.
        every: epochs after which lam grows.
        l2_normalise: divide the logits by their norm first, as published for all data sets but MNIST.
        rescale: divide by C^(1 - p); false gives the published penalty, which grows with C.
        floor: smaller probabilities are replaced by this one, without a gradient; published 1e-7.
    """

    def __init__(
        self,
        num_classes: int,
        base: Loss,
        *,
        tau: Positive | None = None,
        p: Power = 0.1,
        lam: Weight = 9.5,
        rho: Annotated[float, Range(1)] = 1.03,
        every: Annotated[int, Range(1)] = 1,
        l2_normalise: bool = True,
        rescale: bool = True,
        floor: Annotated[float, Range(0, 1, open_high=True)] = 0.0,
    ) -> None:
        super().__init__(num_classes)
        self.base, self.lam, self.rho, self.every = base, lam, rho, every
        self.tau = default_tau(num_classes) if tau is None else tau
        self.l2_normalise = l2_normalise
        self.penalty = SumPower(p, floor)
        self.terms = (*base.terms, self.penalty)
        self.unit = num_classes ** (1 - p) if rescale else 1.0
        self.lam_now = lam

    @property
    def shift(self) -> LogitShift:
        """Changes to the logits: sharpening, and the options of the loss."""
        return LogitShift(bias=self.options.logit_bias, prior=self.prior, tau=self.tau, normalise=self.l2_normalise)

    def start_epoch(self, epoch: int) -> None:
        super().start_epoch(epoch)
        self.lam_now = self.lam * self.rho ** (epoch // self.every)

    def value(self, batch: LossBatch) -> Tensor:
        return self.base.value(batch) + self.lam_now / self.unit * batch.sum(self.penalty)


def default_tau(num_classes: int) -> float:
    """The published .5, or less if logits of norm 1 could not reach p_y = .9 otherwise."""
    return min(0.5, 1 / math.log(9 * (num_classes - 1)))


def _sparse(num_classes: int, /, *, cls: type[Loss], **given: Any) -> SparseRegularised:
    own = {key: value for key, value in given.items() if key in parameters_of(cls)}
    rest = {key: value for key, value in given.items() if key not in own}
    return SparseRegularised(num_classes, cls(num_classes, **own), **rest)


for _name, _base in (("ce", CrossEntropy), ("focal", Focal), ("gce", GCE)):
    LOSSES.components[f"{_name}+sr"] = Component(
        partial(_sparse, cls=_base),
        PAPER,
        {**parameters_of(_base), **parameters_of(SparseRegularised)},
        f"{_name}(u, y) + lam(t) sum_k softmax(u)_k^p / C^(1 - p), u = z / (|z| tau), lam(t) = lam rho^(t div every)",
    )
