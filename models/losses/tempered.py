"""Bi-tempered logistic loss: bounded for t1 < 1, with a heavy-tailed softmax for t2 > 1."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from models.losses.base import LOSSES, Loss, LossBatch
from models.losses.softmax import LogitShift, pieces
from models.recipe.registry import Range

MOST_STEPS = 10  # of Newton's method; float64 logits need 2 to 8 for any t2 and C, and rounding ends float32 earlier

Number = float | Tensor


@LOSSES.register("bi_tempered", paper="Amid et al., NeurIPS 2019 (arXiv 1906.03361), equation 7")
class BiTempered(Loss):
    """-log_t1 p_y - (1 - sum_k p_k^(2 - t1)) / (2 - t1), p = exp_t2(z - G), G such that p sums to 1; t1 = t2 = 1 is CE.

    log_t u = (u^(1 - t) - 1) / (1 - t), and exp_t is its inverse. Newton's method finds G on (sum_k p_k)^(1 - t2),
    which is concave in G: the steps approach from one side and never overshoot, and equal logits need one step only.

    Args:
        t1: in [0, 1]; below 1 the loss is bounded.
        t2: in [1, 5); above 1 outliers have less influence.
        tolerance: largest error of sum_k p_k, in (0, 1).
        num_iters: number of the published fixed-point steps, used instead of Newton's method; after the usual 5 p sums
            to .98 to 1.
    """

    weighs_log_p = False

    def __init__(
        self,
        num_classes: int,
        t1: Annotated[float, Range(0, 1)] = 0.8,
        t2: Annotated[float, Range(1, 5, open_high=True)] = 1.2,
        tolerance: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 1e-6,
        num_iters: Annotated[int, Range(1, 1000)] | None = None,
    ) -> None:
        super().__init__(num_classes)
        self.t1: Number = t1
        self.t2: Number = t2
        self.tolerance, self.num_iters = tolerance, num_iters

    def value(self, batch: LossBatch) -> Tensor:
        solver = Solver(self.tolerance, self.num_iters)
        if any(isinstance(t, Tensor) and t.requires_grad for t in (self.t1, self.t2)):
            return by_autograd(
                batch.shift.apply(_wide(batch.logits), batch.target), batch.target, self.t1, self.t2, solver
            )
        value: Tensor = _Tempered.apply(batch.logits, batch.target, float(self.t1), float(self.t2), solver, batch.shift)
        return value

    def learnable(self) -> dict[str, Range]:
        return {"t1": Range(0, 1), "t2": Range(1)}


class Solver:
    """Finds G, (n,), such that sum_k exp_t(z_k - G) = 1, for t > 1."""

    def __init__(self, tolerance: float, num_iters: int | None) -> None:
        self.tolerance, self.num_iters = tolerance, num_iters

    def __call__(self, z: Tensor, t: float) -> Tensor:
        top = z.amax(1)
        return self._newton(z, top, t - 1) if self.num_iters is None else self._published(z, top, t - 1, self.num_iters)

    def _newton(self, z: Tensor, top: Tensor, b: float) -> Tensor:
        level = top.clone()
        tolerance = max(self.tolerance, 4 * torch.finfo(z.dtype).eps)
        x, w = torch.empty_like(z), torch.empty_like(z)
        for _ in range(MOST_STEPS):
            torch.sub(level[:, None], z, out=x)
            x.mul_(b).add_(1)
            torch.log(x, out=w)
            w.mul_(-1 / b).exp_()
            total = w.sum(1)
            power = total**-b
            level += (1 - power) / (b * power / total * w.div_(x).sum(1))
            if z.device.type == "cpu" and bool(((total - 1).abs() <= tolerance).all()):  # a GPU would have to wait
                break
        return level

    def _published(self, z: Tensor, top: Tensor, b: float, count: int) -> Tensor:
        """a <- (z - max) Z^(1 - t) with Z = sum exp_t(a), `count` times; then G = max - log_t(1 / Z)."""
        first = z - top[:, None]
        a = first
        for _ in range(count):
            total = (1 - b * a).pow(-1 / b).sum(1, keepdim=True)
            a = first * total**-b
        total = (1 - b * a).pow(-1 / b).sum(1)
        return top + (total**b - 1) / b


def log_probabilities(z: Tensor, t: float, solver: Solver) -> Tensor:
    """(n, C) logarithm of the tempered softmax."""
    if t == 1:
        return z.log_softmax(1)
    x = solver(z, t)[:, None] - z
    return x.mul_(t - 1).add_(1).log_().mul_(-1 / (t - 1))


def log_t(log_p: Tensor, t: Number) -> Tensor:
    """log_t p from log p, without cancellation as t goes to 1."""
    if not isinstance(t, Tensor) and t == 1:
        return log_p
    return torch.expm1((1 - t) * log_p) / (1 - t)


def by_autograd(z: Tensor, target: Tensor, t1: Number, t2: Number, solver: Solver) -> Tensor:
    """(N,) loss by plain autograd, also differentiable in t1 and t2; needs several buffers of N x C.

    One more Newton step from the solution, with its slope held constant, has the same derivatives as the solution.
    """
    t1 = torch.as_tensor(t1, dtype=z.dtype).clamp(max=1 - 1e-3)  # avoids the removable 0 / 0 at 1
    b = torch.as_tensor(t2 - 1, dtype=z.dtype).clamp(min=1e-3)
    with torch.no_grad():
        level = solver(z, 1 + float(b.detach()))
        x = 1 + b * (level[:, None] - z)
        slope = (x ** (-1 / b - 1)).sum(1)
    total = ((1 + b * (level[:, None] - z)) ** (-1 / b)).sum(1)
    log_p = -torch.log(1 + b * ((level + (total - 1) / slope)[:, None] - z)) / b
    own = log_p.gather(1, target[:, None])[:, 0]
    return -log_t(own, t1) - (1 - torch.exp((2 - t1) * log_p).sum(1)) / (2 - t1)


class _Tempered(Function):
    """The loss; `forward` also computes the gradient, in one N x C buffer; autograd need not record the solver."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, t1: float, t2: float, solver: Solver, shift: LogitShift
    ) -> Tensor:
        ctx.t1, ctx.t2, ctx.solver, ctx.shift = t1, t2, solver, shift
        ctx.save_for_backward(logits, target)
        gradient = torch.empty_like(logits, dtype=_dtype(logits)) if ctx.needs_input_grad[0] else None
        value = _tempered(logits, target, t1, t2, solver, shift, gradient)
        ctx.gradient = gradient
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_value: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        logits, target = ctx.saved_tensors
        gradient, ctx.gradient = ctx.gradient, None  # released, as in models.losses.softmax
        if gradient is None:
            gradient = torch.empty_like(logits, dtype=_dtype(logits))
            _tempered(logits, target, ctx.t1, ctx.t2, ctx.solver, ctx.shift, gradient)
        return gradient.mul_(by_value[:, None]).to(logits.dtype), None, None, None, None, None


def _tempered(
    logits: Tensor, target: Tensor, t1: float, t2: float, solver: Solver, shift: LogitShift, gradient: Tensor | None
) -> Tensor:
    values = []
    for rows in pieces(logits):
        z, y = _wide(logits[rows]), target[rows, None]
        log_p = log_probabilities(shift.apply(z, target[rows]), t2, solver)
        own = log_p.gather(1, y)
        spread = (log_p * (2 - t1)).exp_().sum(1)
        values.append(-log_t(own[:, 0], t1) - (1 - spread) / (2 - t1))
        if gradient is not None:
            _gradient(log_p, own, y, t1, t2, out=gradient[rows])
            shift.pull(gradient[rows], z)
    return torch.cat(values)


def _gradient(log_p: Tensor, own: Tensor, y: Tensor, t1: float, t2: float, *, out: Tensor) -> None:
    """Writes g_k - escort_k sum_j g_j to `out`; g_k = (p_k - [k = y]) p_k^(t2 - t1), escort = p^t2 / sum p^t2."""
    torch.mul(log_p, 1 + t2 - t1, out=out).exp_()
    out.scatter_add_(1, y, -torch.exp((t2 - t1) * own))
    escort = log_p.mul_(t2).exp_()
    out.sub_(escort.mul_(out.sum(1, keepdim=True) / escort.sum(1, keepdim=True)))


def _dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _wide(logits: Tensor) -> Tensor:
    return logits.to(_dtype(logits))
