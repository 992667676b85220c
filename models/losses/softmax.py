"""One pass over the logits for every loss: log p_y and sums over the classes, with their gradient.

A loss of p_y alone has the gradient w(p_y) (p - e_y), so all such losses are weightings of cross-entropy and share one
kernel. Sums over the classes (NCE, SR, ...) add their own terms. The kernel keeps one buffer of N x C, the
probabilities, and turns it into the gradient in place; F.cross_entropy keeps three. It processes a few rows at a time,
so that the data of every elementwise step fits into the processor's cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

CACHED = 2**18  # values that the second-level cache of a CPU holds
CACHED_GPU = 2**24
SAFE = 1e-30  # a larger probability did not underflow
SMALLEST = 1e-3  # least norm that sharpening divides by: with 1e-12 one row of zeros had a gradient of 1e12


class Term(Protocol):
    """sum_k phi(log p_k), a sum over the classes. Hashable, so that the parts of a loss can share it."""

    def sums(self, u: Tensor, lse: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) sum_k phi and (n,) sum_k phi', from the logits u (n, C), their logsumexp (n,) and p (n, C)."""
        ...

    def slope(self, u: Tensor, lse: Tensor, p: Tensor, weight: Tensor) -> Tensor:
        """(n, C) weight (n, 1) times phi'(log p_k), in a new tensor; other arguments as for `sums`."""
        ...


@dataclass(frozen=True)
class SumLog:
    """sum_k log p_k = sum_k z_k - C logsumexp(z); needs no elementwise pass."""


@dataclass(frozen=True)
class LogSumExp:
    """logsumexp(z), which the logit of an extra class is compared with; needs no elementwise pass."""


@dataclass(frozen=True)
class SumPower:
    """sum_k p_k^r, computed as exp(r log p_k); p_k below `floor` counts as `floor`, without a gradient."""

    r: float
    floor: float = 0.0

    def sums(self, u: Tensor, lse: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        total = self.power(u, lse, p).sum(1)
        if not self.floor:
            return total, self.r * total
        return total, self.slope(u, lse, p, torch.ones_like(lse)[:, None]).sum(1)

    def slope(self, u: Tensor, lse: Tensor, p: Tensor, weight: Tensor) -> Tensor:
        rise = self.power(u, lse, p).mul_(self.r * weight)
        return rise.masked_fill_(u - lse[:, None] < math.log(self.floor), 0) if self.floor else rise

    def power(self, u: Tensor, lse: Tensor, p: Tensor) -> Tensor:
        """(n, C) p_k^r, in a new tensor."""
        if self.floor:
            return (u - lse[:, None]).clamp_(min=math.log(self.floor)).mul_(self.r).exp_()
        if self.r == 2:
            return p * p
        return torch.add(-self.r * lse[:, None], u, alpha=self.r).exp_()


@dataclass(frozen=True)
class SumFocal:
    """sum_k (1 - p_k)^gamma log p_k; with detach_factor the power is a constant in the gradient."""

    gamma: float
    detach_factor: bool = False

    def sums(self, u: Tensor, lse: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        log_p, miss = self.log_p_and_miss(u, lse)
        factor = self.factor(miss)
        total = torch.linalg.vecdot(factor, log_p)
        return total, self.rising(factor, miss, log_p, p).sum(1)

    def slope(self, u: Tensor, lse: Tensor, p: Tensor, weight: Tensor) -> Tensor:
        log_p, miss = self.log_p_and_miss(u, lse)
        return self.rising(self.factor(miss), miss, log_p, p).mul_(weight)

    def log_p_and_miss(self, u: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        """log p and 1 - p, (n, C) each; log p is clamped at 0, which rounding of lse could exceed."""
        log_p = (u - lse[:, None]).clamp_(max=0)
        return log_p, torch.expm1(log_p).neg_()

    def factor(self, miss: Tensor) -> Tensor:
        """(1 - p)^gamma from 1 - p."""
        return miss.sqrt() if self.gamma == 0.5 else miss.pow(self.gamma)

    def rising(self, factor: Tensor, miss: Tensor, log_p: Tensor, p: Tensor) -> Tensor:
        """(1 - p)^gamma (1 - gamma p log p / (1 - p)), written into `factor`."""
        if self.detach_factor:
            return factor
        ratio = (log_p / miss).nan_to_num_(nan=-1.0, neginf=torch.finfo(p.dtype).min)  # the limit at p = 1 is -1
        return factor.mul_(ratio.mul_(p).mul_(-self.gamma).add_(1))


@dataclass(frozen=True)
class SumFloored:
    """sum_k max(log p_k, -depth) + depth."""

    depth: float

    def sums(self, u: Tensor, lse: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        above = u + (self.depth - lse)[:, None]
        return above.clamp_(min=0).sum(1), (above > 0).sum(1).to(lse.dtype)

    def slope(self, u: Tensor, lse: Tensor, p: Tensor, weight: Tensor) -> Tensor:
        return (u + (self.depth - lse)[:, None] > 0) * weight


AnyTerm = SumLog | LogSumExp | Term


@dataclass(frozen=True)
class LogitShift:
    """Changes to the logits inside the loss only: u = z / (|z| tau) or z, + prior, + bias at the target.

    bias: scalar. prior: (C,) or None. tau: > 0, or None to keep the scale. normalise: divide by the norm |z| too.
    """

    bias: float = 0.0
    prior: Tensor | None = None
    tau: float | None = None
    normalise: bool = False

    @property
    def is_identity(self) -> bool:
        """True if the logits stay as they are."""
        return not self.bias and self.prior is None and self.tau is None

    def apply(self, logits: Tensor, target: Tensor) -> Tensor:
        """(n, C) u from logits (n, C); a new tensor unless `is_identity`."""
        if self.is_identity:
            return logits
        u = logits * self.scale(logits) if self.tau else logits.clone()
        if self.prior is not None:
            u += self.prior.to(u)
        if self.bias:
            u.scatter_add_(1, target[:, None], u.new_full((len(u), 1), self.bias))
        return u

    def scale(self, logits: Tensor) -> Tensor | float:
        """Factor of sharpening, (n, 1) or scalar."""
        assert self.tau
        if not self.normalise:
            return 1 / self.tau
        return 1 / (self.tau * _norm(logits))

    def pull(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Turns the gradient with respect to u into that with respect to z, in place."""
        if self.tau is None:
            return gradient
        if self.normalise:
            square = torch.linalg.vecdot(logits, logits)[:, None]
            along = torch.linalg.vecdot(logits, gradient)[:, None] / square
            along = along.where(square > SMALLEST**2, 0)  # for smaller norms the divisor is a constant
            torch.addcmul(gradient, logits, along, value=-1, out=gradient)
            return gradient.mul_(1 / (self.tau * square.clamp(min=SMALLEST**2).sqrt()))
        return gradient.mul_(1 / self.tau)


def _norm(logits: Tensor) -> Tensor:
    return logits.norm(dim=1, keepdim=True).clamp(min=SMALLEST)


IDLE = LogitShift()


def summarise(
    logits: Tensor, target: Tensor, terms: Sequence[AnyTerm] = (), shift: LogitShift = IDLE
) -> tuple[Tensor, ...]:
    """log p_y and the sum of each term, (N,) each, differentiable once; float32, or float64 for float64 logits.

    Nothing is clamped: log p_y = z_y - logsumexp(z) stays finite even if p_y underflows.
    """
    result: tuple[Tensor, ...] = _Summary.apply(logits, target, tuple(terms), shift)
    return result


class _Summary(Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, terms: tuple[AnyTerm, ...], shift: LogitShift
    ) -> tuple[Tensor, ...]:
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        ctx.terms, ctx.shift, ctx.dtype = terms, shift, dtype
        ctx.p = torch.empty_like(logits, dtype=dtype) if ctx.needs_input_grad[0] else None
        log_p, totals, lse, rises = _row_parts(4)
        for rows in pieces(logits):
            u = shift.apply(_of_type(logits[rows], dtype, is_identity=shift.is_identity), target[rows])
            p = _softmax(u, None if ctx.p is None else ctx.p[rows], dtype)
            own = u.gather(1, target[rows, None])[:, 0].to(dtype)
            lse.append(_log_sum_exp(u, p, own, p.gather(1, target[rows, None])[:, 0]))
            log_p.append(own - lse[-1])
            total, rise = _sums(terms, u, p, lse[-1])
            totals.append(total)
            rises.append(rise)
        ctx.save_for_backward(logits, target, torch.cat(lse), torch.cat(rises))
        return torch.cat(log_p), *torch.cat(totals).unbind(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_log_p: Tensor, *by_sums: Tensor) -> tuple[Tensor, None, None, None]:
        logits, target, lse, rises = ctx.saved_tensors
        # Released, because autograd copies a tensor that is referenced twice; a second backward pass computes it again.
        gradient, ctx.p = ctx.p, None
        fresh = gradient is None
        if fresh:
            gradient = torch.empty_like(logits, dtype=ctx.dtype)
        weights = torch.stack(by_sums, 1) if by_sums else rises
        pull = by_log_p + (weights * rises).sum(1)
        for rows in pieces(logits):
            part = gradient[rows]
            z = _of_type(logits[rows], ctx.dtype, is_identity=ctx.shift.is_identity)
            u = ctx.shift.apply(z, target[rows])
            if fresh:
                _softmax(u, part, ctx.dtype)
            extra = _slopes(ctx.terms, u, part, lse[rows], weights[rows])
            part.mul_(-pull[rows, None])
            if extra is not None:
                part.add_(extra)
            part.scatter_add_(1, target[rows, None], by_log_p[rows, None])
            ctx.shift.pull(part, z)
        return gradient.to(logits.dtype), None, None, None


def pieces(logits: Tensor) -> Iterator[slice]:
    """Consecutive slices of rows, each small enough for the cache."""
    step = max((CACHED if logits.device.type == "cpu" else CACHED_GPU) // logits.shape[1], 1)
    for start in range(0, len(logits), step):
        yield slice(start, start + step)


def _row_parts(count: int) -> tuple[list[Tensor], ...]:
    return tuple([] for _ in range(count))


def _of_type(logits: Tensor, dtype: torch.dtype, *, is_identity: bool) -> Tensor:
    """Converts the logits only if a shift changes them; softmax converts half precision by itself."""
    return logits if is_identity else logits.to(dtype)


def _softmax(u: Tensor, out: Tensor | None, dtype: torch.dtype) -> Tensor:
    return torch.softmax(u, 1, dtype=dtype) if out is None else torch.softmax(u, 1, dtype=dtype, out=out)


def _log_sum_exp(u: Tensor, p: Tensor, own: Tensor, own_p: Tensor) -> Tensor:
    """(n,) log sum_k exp(u_k) = u_k - log p_k of any class k: the label, or the top class, which cannot underflow."""
    if own_p.device.type == "cpu" and bool((own_p > SAFE).all()):  # on a GPU this would wait for the result
        return own - own_p.log()
    return u.amax(1).to(p.dtype) - p.amax(1).log()


def _sums(terms: tuple[AnyTerm, ...], u: Tensor, p: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """sum_k phi and sum_k phi' of every term, (n, T) each."""
    found = []
    for term in terms:
        if isinstance(term, SumLog):
            num_classes = u.shape[1]
            found.append((u.sum(1, dtype=lse.dtype) - num_classes * lse, torch.full_like(lse, num_classes)))
        elif isinstance(term, LogSumExp):
            found.append((lse, torch.full_like(lse, -1)))  # the gradient is p, the opposite sign of the others
        else:
            found.append(term.sums(u, lse, p))
    if not found:
        return lse.new_empty(len(u), 0), lse.new_empty(len(u), 0)
    return torch.stack([total for total, _ in found], 1), torch.stack([rise for _, rise in found], 1)


def _slopes(terms: tuple[AnyTerm, ...], u: Tensor, p: Tensor, lse: Tensor, weights: Tensor) -> Tensor | None:
    """Sum over terms of weight times phi'(log p_k): (n, C), or (n, 1) if equal for all classes; None without terms."""
    extra: Tensor | None = None
    for term, weight in zip(terms, weights.unbind(1), strict=False):
        if isinstance(term, LogSumExp):
            continue
        part = weight[:, None] if isinstance(term, SumLog) else term.slope(u, lse, p, weight[:, None])
        extra = part if extra is None else extra + part
    return extra


class _Miss(Function):
    """1 - exp(x) with the gradient -exp(x); the gradient of torch.expm1 rounds to 0 below 6e-8."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return -torch.expm1(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_miss: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return -by_miss * torch.exp(x)


def one_minus_exp(x: Tensor) -> Tensor:
    """1 - e^x, exact near x = 0, with an exact gradient for any small e^x."""
    result: Tensor = _Miss.apply(x)
    return result
