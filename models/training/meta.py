"""Meta-learning of a loss's hyperparameters (such as q of GCE) during training, on photos with trusted labels.

Shu et al. 2020 (arXiv 2002.06482): a training step is first taken on trial; the cross-entropy of the trial network on
trusted photos gives a gradient for the hyperparameters, which are updated before the real step is taken. The authors
find that the schedule brings the gain: training again with its final values is worse than with constants, but training
again with the whole schedule (`Replay`) is better.
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
from models.data.trusted import MIN_PHOTOS, Draws
from models.errors import ConfigError
from models.losses import LOSSES, Loss, build_loss
from models.networks.inputs import Inputs
from models.networks.network import Network, Output
from models.recipe.config import Meta
from models.recipe.registry import Range
from models.training.hypergradient import hyper_gradient, set_hyperparameters, untouched
from models.training.optimise import trainable_parameters

PREFIX = "loss.params."  # of a hyperparameter's name in metrics.jsonl, as in a recipe


class Constant:
    """Hyperparameters of a loss that stay as in the recipe."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def start_epoch(self, epoch: int, *, num_epochs: int) -> None:
        """Called before every epoch, counted from 0; also after a resume."""

    def step(self, batch: Tensor, target: Tensor, optimizer: Optimizer) -> None:
        """Called before every training step, with its batch and optimiser."""

    def figures(self) -> dict[str, float]:
        """Present hyperparameters, for metrics.jsonl."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """State that a resumed training needs to give the same result."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""


class Replay(Constant):
    """Hyperparameters that follow the metrics.jsonl of an earlier training, at equal fractions of both trainings."""

    def __init__(self, loss: Loss, path: Path) -> None:
        super().__init__(loss)
        self.schedule = read_schedule(path, loss)
        self.now = self.schedule[0]

    def start_epoch(self, epoch: int, *, num_epochs: int) -> None:
        """Sets the hyperparameters of the corresponding epoch of the schedule."""
        self.now = self.schedule[math.ceil((epoch + 1) * len(self.schedule) / num_epochs) - 1]
        set_hyperparameters(self.loss, self.now)

    def figures(self) -> dict[str, float]:
        """Present hyperparameters, for metrics.jsonl."""
        return {PREFIX + name: value for name, value in self.now.items()}


class Adjuster(Constant):
    """Learns the hyperparameters of a loss. The trial step is a plain gradient step at the present learning rates.

    Args:
        inputs: trusted photos, fed to the network that is trained.
        target: (M,) int64 classes of the trusted photos.

    Raises:
        ConfigError: the loss has no hyperparameter to learn or one starts at a bound, or the photos are too few for all
            workers.
    """

    def __init__(
        self, loss: Loss, settings: Meta, *, network: Network, inputs: Inputs, target: NDArray[np.int64], seed: int
    ) -> None:
        super().__init__(loss)
        self.settings, self.network, self.inputs, self.target, self.seed = settings, network, inputs, target, seed
        self.bounds = bounds_of(loss)
        self.raw = torch.tensor(start_of(loss), dtype=torch.float64, requires_grad=True)
        self.outer = torch.optim.Adam([self.raw], lr=settings.lr, eps=1e-15)  # gradients are tiny with many classes
        self.draws = Draws(target, batch_size=settings.batch_size, seed=seed)
        self.num_steps = 0  # training steps so far
        self.num_drawn = 0  # trusted batches so far
        if self.draws.batch_size < MIN_PHOTOS * distributed.world():
            raise ConfigError(
                f"meta.batch_size: {self.draws.batch_size} trusted photos, but each of {distributed.world()} workers needs "
                f"{MIN_PHOTOS}; raise it, name more in meta.photos, or start fewer workers (train.workers)"
            )

    def step(self, batch: Tensor, target: Tensor, optimizer: Optimizer) -> None:
        """Updates the hyperparameters, every `every` steps."""
        due = self.num_steps % self.settings.every == 0
        self.num_steps += 1
        if not due or self.loss.ce_share == 1:  # in a pure cross-entropy warm-up the hyperparameters have no effect
            return
        self.values().backward(self._gradient(batch, target, optimizer))
        self.outer.step()
        self.outer.zero_grad()
        self._update_loss()

    def values(self) -> Tensor:
        """(K,) hyperparameters in the order of `bounds`, as a function of `raw`."""
        return torch.stack([bounded(raw, span) for raw, span in zip(self.raw, self.bounds.values(), strict=True)])

    def figures(self) -> dict[str, float]:
        """Present hyperparameters, for metrics.jsonl."""
        return {PREFIX + name: value for name, value in zip(self.bounds, self.values().tolist(), strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Hyperparameters, state of their optimiser, and counters."""
        counts = {"num_steps": self.num_steps, "num_drawn": self.num_drawn}
        return {"raw": self.raw.detach(), "outer": self.outer.state_dict(), **counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        with torch.no_grad():
            self.raw.copy_(state["raw"])
        self.outer.load_state_dict(state["outer"])
        self.num_steps, self.num_drawn = state["num_steps"], state["num_drawn"]
        self._update_loss()

    def _update_loss(self) -> None:
        set_hyperparameters(self.loss, dict(zip(self.bounds, self.values().tolist(), strict=True)))

    def _gradient(self, batch: Tensor, target: Tensor, optimizer: Optimizer) -> Tensor:
        """(K,) hypergradient on the next trusted batch; keeps the network's buffers and the random state of training."""
        gpu = [batch.device] if batch.device.type == "cuda" else []
        with untouched(self.network.buffers()), torch.random.fork_rng(gpu):
            trusted, trusted_target = self._draw()
            if self.settings.head_only:
                parameters: list[Tensor] = [self.network.head.classifier.weight]
                logits_of: Callable[[Tensor], Tensor] = self.network.head.classifier
                with torch.no_grad():
                    batch, trusted = (self.inputs.part.embedding(each) for each in (batch, trusted))
            else:
                parameters, logits_of = list(trainable_parameters(optimizer)), self._logits
            return hyper_gradient(
                self.loss, list(self.bounds), parameters=parameters, rates=_rates(parameters, optimizer),
                logits_of=logits_of, batch=(batch, target), trusted=(trusted, trusted_target),
                ignore_length=self.settings.ignore_length,
            )  # fmt: skip

    def _draw(self) -> tuple[Tensor, Tensor]:
        """This worker's part of the next trusted batch, and its classes; depends only on the seed and its number."""
        positions = self.draws[self.num_drawn]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.num_drawn)
        self.num_drawn += 1
        (mixed,) = self.inputs.training([positions], generator)
        target = torch.from_numpy(self.target[mixed.batch[distributed.part(len(positions))]])
        return mixed.photos, target.to(mixed.photos.device, non_blocking=True)

    def _logits(self, batch: Tensor) -> Tensor:
        torch.manual_seed(self.num_drawn)  # both ends of a difference need the same dropout
        output: Output = self.inputs.part(batch)
        return output.logits


def _rates(parameters: list[Tensor], optimizer: Optimizer) -> list[float]:
    """Present learning rate of each parameter."""
    rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    return [rates[id(p)] for p in parameters]


def bounds_of(loss: Loss) -> dict[str, Range]:
    """Hyperparameters of a loss that can be learnt, with their bounds.

    Raises:
        ConfigError: there are none; the message lists the losses that have some.
    """
    bounds = loss.learnable()
    if not bounds:
        able = sorted(name for name in LOSSES.components if build_loss(name, loss.num_classes).learnable())
        raise ConfigError(
            f"meta: {type(loss).__name__} has no hyperparameter to learn; set loss.name to one of {', '.join(able)}, or leave "
            "meta.photos and meta.replay empty"
        )
    if loss.options.init_match == "batch":
        raise ConfigError(
            "loss.params.init_match: 'batch' rescales the loss in every batch, which hides the effect of its hyperparameters "
            "from meta; set 'initial', or omit it"
        )
    return bounds


def bounded(raw: Tensor, span: Range) -> Tensor:
    """Maps the real line into the bounds: by a sigmoid if both are finite, otherwise by low + softplus."""
    if math.isinf(span.high):
        return span.low + F.softplus(raw)
    return span.low + (span.high - span.low) * torch.sigmoid(raw)


def start_of(loss: Loss) -> list[float]:
    """Values that `bounded` maps to the present hyperparameters.

    Raises:
        ConfigError: a hyperparameter lies on or outside a bound.
    """
    bounds = bounds_of(loss)
    for name, span in bounds.items():
        value = getattr(loss, name)
        if not span.low < value < span.high:
            raise ConfigError(
                f"{PREFIX}{name}: meta cannot start from {value:g}; set it inside ({span.low:g}, {span.high:g})"
            )
    return [unbounded(getattr(loss, name), span) for name, span in bounds.items()]


def unbounded(value: float, span: Range) -> float:
    """Inverse of `bounded`."""
    if math.isinf(span.high):
        above = value - span.low
        return above + math.log(-math.expm1(-above))
    return math.log((value - span.low) / (span.high - value))


def read_schedule(path: Path, loss: Loss) -> list[dict[str, float]]:
    """Hyperparameters per epoch, from the metrics.jsonl of a training that learnt them for such a loss.

    Raises:
        ConfigError: the file does not exist, lacks these hyperparameters, or exceeds the loss's bounds.
    """
    bounds = bounds_of(loss)
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        schedule = [{name: float(line[PREFIX + name]) for name in bounds} for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"meta.replay: {path} is not a schedule of {', '.join(bounds)} ({type(error).__name__}: {error}); give the "
            "metrics.jsonl of a training of this loss with meta.photos"
        ) from None
    outside = [entry for entry in schedule if any(entry[name] not in span for name, span in bounds.items())]
    if outside or not schedule:
        raise ConfigError(f"meta.replay: {path} holds {outside[0] if outside else 'no epoch'}; the bounds are "
                          f"{', '.join(f'{name} in {span}' for name, span in bounds.items())}")  # fmt: skip
    return schedule
