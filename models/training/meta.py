"""A loss's own numbers (q of GCE, ...) learnt together with the network, from photos whose labels are trusted.

Shu et al. 2020 (arXiv 2002.06482): before a training step, take it on trial; the cross-entropy of the trial network on
trusted photos says which way the numbers should have been; move them; then take the step itself. They find that the
schedule carries the gain: training anew with its last values is worse than constants, with all of it (`Replay`) better.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from models import distributed
from models.data.trusted import LEAST, Draws
from models.errors import ConfigError
from models.losses import LOSSES, Loss, build_loss
from models.networks.inputs import Inputs
from models.networks.network import Network
from models.recipe.config import Meta
from models.recipe.registry import Range
from models.training.hypergradient import hyper_gradient, set_parameters, untouched
from models.training.optimise import trainable_parameters

PREFIX = "loss.params."  # of a number in metrics.jsonl: as a recipe names it


class Constant:
    """The loss's numbers stay as the recipe gives them."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def start_epoch(self, epoch: int, *, of: int) -> None:
        """Told before every epoch, counted from 0; also after a resume."""

    def step(self, batch: Tensor, target: Tensor, optimizer: Optimizer) -> None:
        """Told before every training step what it will learn from, and with what."""

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
        set_parameters(self.loss, self.now)

    def figures(self) -> dict[str, float]:
        return {PREFIX + name: value for name, value in self.now.items()}


class Adjuster(Constant):
    """Learns the numbers of a loss. The trial step is a plain gradient step at the training's present learning rates.

    Args:
        inputs: of the trusted photos, through the network that is trained.
        target: (M,) int64 classes of the trusted photos.

    Raises:
        ConfigError: the loss has nothing to learn or starts at a bound, or the photos are too few for all workers.
    """

    def __init__(
        self, loss: Loss, settings: Meta, *, network: Network, inputs: Inputs, target: NDArray[np.int64], seed: int
    ) -> None:
        super().__init__(loss)
        self.settings, self.network, self.inputs, self.target, self.seed = settings, network, inputs, target, seed
        self.bounds = bounds_of(loss)
        self.raw = torch.tensor(start_of(loss), dtype=torch.float64, requires_grad=True)
        self.outer = torch.optim.Adam([self.raw], lr=settings.lr, eps=1e-15)  # many classes: tiny gradients
        self.draws = Draws(target, batch_size=settings.batch_size, seed=seed)
        self.num_steps = 0  # of training
        self.num_drawn = 0  # trusted batches
        if self.draws.batch_size < LEAST * distributed.world():
            raise ConfigError(
                f"meta.batch_size: {self.draws.batch_size} trusted photos, and each of {distributed.world()} workers needs "
                f"{LEAST}; raise it, name more in meta.photos, or start fewer workers (train.workers)"
            )

    def step(self, batch: Tensor, target: Tensor, optimizer: Optimizer) -> None:
        due = self.num_steps % self.settings.every == 0
        self.num_steps += 1
        if not due or self.loss.ce_share == 1:  # a warm-up, in which the numbers do nothing
            return
        self.values().backward(self._slopes(batch, target, optimizer))
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
        set_parameters(self.loss, dict(zip(self.bounds, self.values().tolist(), strict=True)))

    def _slopes(self, batch: Tensor, target: Tensor, optimizer: Optimizer) -> Tensor:
        """(K,) by the next trusted batch. The network and the random numbers of training stay as they are."""
        gpu = [batch.device] if batch.device.type == "cuda" else []
        with untouched(self.network.buffers()), torch.random.fork_rng(gpu):
            trusted, trusted_target = self._draw()
            if self.settings.head_only:
                parameters: list[Tensor] = [self.network.head.classifier.weight]
                answer: Callable[[Tensor], Tensor] = self.network.head.classifier
                with torch.no_grad():
                    batch, trusted = self.inputs.embedding(batch), self.inputs.embedding(trusted)
            else:
                parameters, answer = list(trainable_parameters(optimizer)), self._answer
            return hyper_gradient(
                self.loss, list(self.bounds), parameters=parameters, rates=_rates(parameters, optimizer), answer=answer,
                batch=(batch, target), trusted=(trusted, trusted_target), ignore_length=self.settings.ignore_length,
            )  # fmt: skip

    def _draw(self) -> tuple[Tensor, Tensor]:
        """This worker's part of the next trusted batch and its classes, decided by the seed and the number of those before."""
        positions = self.draws[self.num_drawn]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.num_drawn)
        self.num_drawn += 1
        ((batch, _),) = self.inputs.training([positions], generator)
        return batch, torch.from_numpy(self.target[positions[distributed.part(len(positions))]]).to(batch.device)

    def _answer(self, batch: Tensor) -> Tensor:
        torch.manual_seed(self.num_drawn)  # a difference needs the same dropout twice
        return self.inputs.forward(batch).logits


def _rates(parameters: list[Tensor], optimizer: Optimizer) -> list[float]:
    """The learning rate of each parameter now."""
    rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    return [rates[id(p)] for p in parameters]


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


def start_of(loss: Loss) -> list[float]:
    """What `bounded` sends to the loss's present numbers; ConfigError where one lies at or beyond a bound."""
    bounds = bounds_of(loss)
    for name, span in bounds.items():
        value = getattr(loss, name)
        if not span.low < value < span.high:
            raise ConfigError(
                f"{PREFIX}{name}: from {value:g} meta cannot start; set it inside ({span.low:g}, {span.high:g})"
            )
    return [unbounded(getattr(loss, name), span) for name, span in bounds.items()]


def unbounded(value: float, span: Range) -> float:
    """The inverse of `bounded`."""
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
