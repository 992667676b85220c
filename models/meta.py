"""A loss's own numbers (q of GCE, ...) learnt together with the network, from photos whose labels are trusted.

Shu et al. 2020 (arXiv 2002.06482): before a training step, take it on trial; the cross-entropy of the trial network on
trusted photos says which way the numbers should have been; move them; then take the step itself. They find that the
schedule carries the gain: training anew with its last values is worse than constants, with all of it (`Replay`) better.

Published code differentiates twice through the network, which costs three steps and which fused losses cannot do. Here the
second derivative is a difference of two first ones (Liu et al., ICLR 2019, equation 8).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from models.config import Meta
from models.data.trusted import Draws
from models.errors import ConfigError
from models.inputs import Inputs
from models.losses import LOSSES, Loss, build_loss
from models.network import Network
from models.registry import Range

STEP = 1e-2  # norm of the step of the finite difference: it errs by about STEP^2, and float32 rounds to 1e-7 / STEP
PREFIX = "loss.params."  # of a number in metrics.jsonl: as a recipe names it


class Constant:
    """The loss's numbers stay as the recipe gives them."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def start_epoch(self, epoch: int, *, of: int) -> None:
        """Told before every epoch, counted from 0; also after a resume."""

    def step(self, batch: Tensor, target: Tensor) -> None:
        """Told before every training step what it will learn from, as the network takes it."""

    def figures(self) -> dict[str, float]:
        """The numbers as they are now, for metrics.jsonl."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs to go on alike."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken."""


class Replay(Constant):
    """The numbers follow the metrics.jsonl of an earlier training, at equal shares of both trainings."""

    def __init__(self, loss: Loss, path: Path) -> None:
        super().__init__(loss)
        self.schedule = read_schedule(path, loss)
        self.now = self.schedule[0]

    def start_epoch(self, epoch: int, *, of: int) -> None:
        self.now = self.schedule[math.ceil((epoch + 1) * len(self.schedule) / of) - 1]
        put(self.loss, self.now)

    def figures(self) -> dict[str, float]:
        return {PREFIX + name: value for name, value in self.now.items()}


class Adjuster(Constant):
    """Learns the numbers of a loss.

    Args:
        inputs: of the trusted photos, through the network that is trained.
        target: (M,) int64 classes of the trusted photos.
        optimizer: of the training; the trial step is a plain gradient step at its present learning rates.
        average: mean of a tensor over all workers. Each has its own batches, and all move the numbers alike.

    Raises:
        ConfigError: the loss has nothing to learn, or starts at a bound.
    """

    def __init__(
        self, loss: Loss, settings: Meta, *, network: Network, inputs: Inputs, target: NDArray[np.int64],
        optimizer: torch.optim.Optimizer, seed: int, average: Callable[[Tensor], Tensor] = lambda mean: mean,
    ) -> None:  # fmt: skip
        super().__init__(loss)
        self.settings, self.network, self.inputs, self.optimizer = settings, network, inputs, optimizer
        self.target, self.seed, self.average = target, seed, average
        self.bounds = bounds_of(loss)
        start = [unbounded(name, getattr(loss, name), span) for name, span in self.bounds.items()]
        self.raw = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        self.outer = torch.optim.Adam(
            [self.raw], lr=settings.lr, eps=1e-15
        )  # gradients are tiny where classes are many
        self.draws = Draws(target, batch_size=settings.batch_size, seed=seed)
        self.num_steps = 0  # of training
        self.num_drawn = 0  # trusted batches

    def step(self, batch: Tensor, target: Tensor) -> None:
        due = self.num_steps % self.settings.every == 0
        self.num_steps += 1
        if not due or self.loss.ce_share == 1:  # a warm-up, in which the numbers do nothing
            return
        values = self.values()
        values.backward(self.average(self._slopes(batch, target)))
        self.outer.step()
        self.outer.zero_grad()
        self._put()

    def values(self) -> Tensor:
        """(K,) the numbers in the order of `bounds`, as a function of `raw`."""
        return torch.stack([bounded(raw, span) for raw, span in zip(self.raw, self.bounds.values(), strict=True)])

    def figures(self) -> dict[str, float]:
        return {PREFIX + name: value for name, value in zip(self.bounds, self.values().tolist(), strict=True)}

    def state_dict(self) -> dict[str, Any]:
        counts = {"num_steps": self.num_steps, "num_drawn": self.num_drawn}
        return {"raw": self.raw.detach(), "outer": self.outer.state_dict(), **counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            self.raw.copy_(state["raw"])
        self.outer.load_state_dict(state["outer"])
        self.num_steps, self.num_drawn = state["num_steps"], state["num_drawn"]
        self._put()

    def _put(self) -> None:
        put(self.loss, dict(zip(self.bounds, self.values().tolist(), strict=True)))

    def _slopes(self, batch: Tensor, target: Tensor) -> Tensor:
        """(K,) the hyper-gradient of the next trusted batch. The network and the random numbers of training stay as they are."""
        device = self.network.mean.device
        trusted, trusted_target = self._draw()
        with untouched(self.network.buffers()), torch.random.fork_rng([device] if device.type == "cuda" else []):
            if self.settings.head_only:
                parameters = [self.network.head.classifier.weight]
                answer: Callable[[Tensor], Tensor] = self.network.head.classifier
                batch, trusted = self._embed(batch), self._embed(trusted)
            else:
                parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
                answer = self._answer
            return hyper_gradient(
                self.loss, list(self.bounds), parameters=parameters, rates=[self._rate(p) for p in parameters],
                answer=answer, batch=(batch, target), trusted=(trusted, trusted_target), ignore_length=self.settings.ignore_length,
            )  # fmt: skip

    def _draw(self) -> tuple[Tensor, Tensor]:
        """A trusted batch and its classes, decided by the seed and the number of those before."""
        positions = self.draws[self.num_drawn]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.num_drawn)
        self.num_drawn += 1
        (batch,) = self.inputs.training([positions], generator)
        return batch, torch.from_numpy(self.target[positions]).to(batch.device)

    def _answer(self, batch: Tensor) -> Tensor:
        torch.manual_seed(self.num_drawn)  # a difference needs the same dropout twice
        return self.inputs.forward(batch).logits

    @torch.no_grad()
    def _embed(self, batch: Tensor) -> Tensor:
        return self.inputs.forward(batch).embedding

    def _rate(self, parameter: Tensor) -> float:
        """The learning rate at which the training moves it now."""
        groups = self.optimizer.param_groups
        return float(next(group["lr"] for group in groups if any(parameter is p for p in group["params"])))


def hyper_gradient(
    loss: Loss, names: Sequence[str], *, parameters: Sequence[Tensor], rates: Sequence[float],
    answer: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor], trusted: tuple[Tensor, Tensor], ignore_length: bool,
) -> Tensor:  # fmt: skip
    """(K,) float64: d CE(trusted; w - rate dL(batch; w)/dw) / d number, w the parameters, for the loss's numbers `names`.

    It is -<v, d^2 L / dw d number> with v = rate dCE/dw at the trial parameters, and that a central difference along v.
    Costs two differentiated passes through `answer` and two plain ones.

    Args:
        answer: input -> logits (N, C), a function of the parameters.
        batch, trusted: input and classes (N,).
        ignore_length: the derivative of a trial step of constant length: v loses its part along dL/dw. Else a number is praised
            for lengthening steps that go the right way, which an optimizer like AdamW takes back. Ours.
    """
    with untouched(parameters):
        descent = torch.autograd.grad(loss(answer(batch[0]), batch[1]).mean(), parameters, materialize_grads=True)
        with torch.no_grad():
            start = [parameter.clone() for parameter in parameters]
            _place(parameters, start, descent, by=[-rate for rate in rates])
        cost = F.cross_entropy(answer(trusted[0]), trusted[1])
        slope = torch.autograd.grad(cost, parameters, materialize_grads=True)
        v = [rate * part for rate, part in zip(rates, slope, strict=True)]
        if ignore_length:
            share = _dot(v, descent) / (_dot(descent, descent) or 1.0)
            v = [part - share * along for part, along in zip(v, descent, strict=True)]
        norm = math.sqrt(_dot(v, v))
        if not norm:  # the learning rate is 0
            return torch.zeros(len(names), dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                _place(parameters, start, v, by=[sign * STEP / norm] * len(v))
                logits = answer(batch[0])
            ends.append(_loss_slopes(loss, names, logits, batch[1]))
    return (ends[1] - ends[0]) * (norm / (2 * STEP))


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return sum(float((a.double() * b.double()).sum()) for a, b in zip(one, other, strict=True))


def _place(
    parameters: Sequence[Tensor], start: Sequence[Tensor], way: Sequence[Tensor], *, by: Sequence[float]
) -> None:
    for parameter, origin, part, length in zip(parameters, start, way, by, strict=True):
        torch.add(origin, part, alpha=length, out=parameter)


def _loss_slopes(loss: Loss, names: Sequence[str], logits: Tensor, target: Tensor) -> Tensor:
    """(K,) float64 derivatives of the mean loss by its numbers."""
    before = {name: getattr(loss, name) for name in names}
    leaves = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in before.items()}
    try:
        put(loss, leaves)
        value = loss(logits, target).mean()
    finally:
        put(loss, before)
    return torch.stack(torch.autograd.grad(value, list(leaves.values()), materialize_grads=True))


@contextmanager
def untouched(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Whatever happens to them inside is taken back, to the bit."""
    kept = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, content in kept:
                tensor.copy_(content)


def put(loss: Loss, values: Mapping[str, Any]) -> None:
    """Sets the loss's numbers."""
    for name, value in values.items():
        setattr(loss, name, value)


def bounds_of(loss: Loss) -> dict[str, Range]:
    """What can be learnt of a loss; ConfigError lists the losses that have something where this one has not."""
    bounds = loss.learnable()
    if not bounds:
        able = sorted(name for name in LOSSES.components if build_loss(name, loss.num_classes).learnable())
        raise ConfigError(
            f"meta: {type(loss).__name__} has no number to learn; set loss.name to one of {', '.join(able)}, or leave "
            "meta.photos and meta.replay empty"
        )
    if loss.options.init_match == "batch":
        raise ConfigError(
            "loss.params.init_match: 'batch' divides the loss by what its numbers do to it, which hides them from meta; "
            "set 'initial', or leave it out"
        )
    return bounds


def bounded(raw: Tensor, span: Range) -> Tensor:
    """All reals -> between the bounds: a sigmoid between two, low + softplus above one."""
    if math.isinf(span.high):
        return span.low + F.softplus(raw)
    return span.low + (span.high - span.low) * torch.sigmoid(raw)


def unbounded(name: str, value: float, span: Range) -> float:
    """The inverse of `bounded`."""
    if not span.low < value < span.high:
        raise ConfigError(
            f"{PREFIX}{name}: {value:g} is where meta cannot start from; set it inside ({span.low:g}, {span.high:g})"
        )
    if math.isinf(span.high):
        above = value - span.low
        return above + math.log(-math.expm1(-above))
    return math.log((value - span.low) / (span.high - value))


def read_schedule(path: Path, loss: Loss) -> list[dict[str, float]]:
    """What a training that learnt the numbers of such a loss wrote, one entry per epoch.

    Raises:
        ConfigError: no such file, or not with these numbers, or not within the loss's bounds.
    """
    bounds = bounds_of(loss)
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        schedule = [{name: float(line[PREFIX + name]) for name in bounds} for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"meta.replay: {path} is no schedule of {', '.join(bounds)} ({type(error).__name__}: {error}); give the "
            "metrics.jsonl of a training of this loss with meta.photos"
        ) from None
    outside = [entry for entry in schedule if any(entry[name] not in span for name, span in bounds.items())]
    if outside or not schedule:
        raise ConfigError(f"meta.replay: {path} holds {outside[0] if outside else 'no epoch'}; the bounds are "
                          f"{', '.join(f'{name} in {span}' for name, span in bounds.items())}")  # fmt: skip
    return schedule
