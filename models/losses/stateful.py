"""What losses with state per sample have in common: a memory, a weight for every sample, and guards for rare classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.errors import BatchError, ConfigError
from models.losses.base import Loss, LossBatch, build_loss, common_parameters
from models.losses.memory import Column, Memory
from models.losses.samples import Samples
from models.losses.softmax import LogitShift
from models.recipe.registry import Range

Share = Annotated[float, Range(0, 1, open_high=True)]
AtLeastOne = Annotated[int, Range(1)]
Epoch = Annotated[int, Range(0)]


@dataclass(frozen=True)
class Guard:
    """What is left of every class whatever a method wishes away. Ours: the papers' data sets have no rare classes.

    max_share: of a class that may go, in [0, 1). n_min: samples of it that stay.
    """

    max_share: float
    n_min: int

    def part_with(self, wish: NDArray[np.bool_], score: NDArray[Any], target: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(N,) bool: who of the wished goes; the lowest scores of each class first, then the first in order."""
        size = np.bincount(target)
        allowed = np.minimum(np.floor(self.max_share * size + 1e-9), size - self.n_min)
        rows = np.flatnonzero(wish)
        rows = rows[np.lexsort((score[rows], target[rows]))]
        rank = np.arange(len(rows)) - np.searchsorted(target[rows], target[rows])
        going = np.zeros(len(target), bool)
        going[rows[rank < allowed[target[rows]]]] = True
        return going


def class_quantile(
    values: NDArray[Any], target: NDArray[np.int64], q: float, *, num_classes: int
) -> NDArray[np.float64]:
    """(C,) q-quantile of each class's values, between neighbours linearly; NaN for a class that has none."""
    order = np.lexsort((values, target))
    ordered = np.append(values[order].astype(np.float64), np.nan)
    size = np.bincount(target, minlength=num_classes)
    place = q * (size - 1).clip(0)
    low = np.cumsum(size) - size + np.floor(place).astype(np.int64)
    high = np.where(place > np.floor(place), low + 1, low)
    middle: NDArray[np.float64] = ordered[low] + (place - np.floor(place)) * (ordered[high] - ordered[low])
    return np.where(size > 0, middle, np.nan)


class Stateful(Loss):
    """A loss that remembers. `unweighted` is its value, which the weight of the sample multiplies.

    Weights are decided from merged state, before an epoch, and have the mean 1 over the training set: what is left out does
    not shorten the step.
    """

    needs_index = True
    columns: ClassVar[Mapping[str, Column]] = {}
    name = ""  # in the memory
    weight: NDArray[np.float32] | None = None  # (N,), once it has begun
    guard: Guard

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.epoch = 0
        self.facts: dict[str, float] = {}  # that a resumed training needs beside the memory

    def unweighted(self, batch: LossBatch) -> Tensor:
        """(N,) the value, before the weight."""
        raise NotImplementedError  # every method writes its own

    def meaning(self) -> dict[str, Any]:
        """Parameters without which the columns cannot be understood."""
        return {}

    def decide(self) -> None:
        """Sets `weight` from the memory for the epoch `self.epoch`; called again, it decides the same."""

    def value(self, batch: LossBatch) -> Tensor:
        return self._weigh(batch, self.unweighted(batch))

    def warming(self, batch: LossBatch) -> Tensor:
        return self._weigh(batch, super().warming(batch))

    @property
    def known(self) -> Memory:
        """The memory; BatchError before `begin`."""
        if self.memory is None:
            raise BatchError("this loss keeps state per sample and does not know them yet; call begin(samples) first")
        return self.memory

    def observe(self, batch: LossBatch) -> None:
        if (
            len(self.known) and self.training and torch.is_grad_enabled()
        ):  # a loss that is measured, or computed anew, is no observation
            with torch.no_grad():
                self.note(batch)

    def note(self, batch: LossBatch) -> None:
        """What is to be remembered of a batch."""

    def begin(self, samples: Samples) -> None:
        super().begin(samples)
        if len(samples.classes) != self.num_classes:
            raise BatchError(
                f"samples: of {len(samples.classes)} classes, and the loss was built for {self.num_classes}"
            )
        self.memory = Memory(samples, self.columns, name=self.name, meaning=self.meaning())
        self.remember_new()
        self.start_epoch(self.epoch)

    def remember_new(self) -> None:
        """Fills the columns in where one value for all does not do."""

    def start_epoch(self, epoch: int) -> None:
        super().start_epoch(epoch)
        self.epoch = epoch
        if self.memory is not None:
            self.decide()

    def get_extra_state(self) -> dict[str, Any]:
        return {} if self.memory is None else {"memory": self.memory.state(), "facts": dict(self.facts)}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        if state:
            self.known.load(state["memory"])
            self.facts = dict(state["facts"])
            self.decide()

    def weigh(self, weight: NDArray[Any]) -> None:
        """Sets the weights of the samples, (N,) >= 0, scaled to the mean 1."""
        self.weight = (weight / weight.mean()).astype(np.float32)

    def weight_of(self, batch: LossBatch) -> Tensor | None:
        """(n,) weights of a batch; None where the samples are not known, as when a fresh loss is measured."""
        return None if self.weight is None or batch.index is None else pick(self.weight, batch)

    def shift_of(self, base: Loss) -> LogitShift:
        """What a base does to the logits, and this loss's own options."""
        return dataclasses.replace(base.shift, bias=self.options.logit_bias, prior=self.prior)

    def _weigh(self, batch: LossBatch, value: Tensor) -> Tensor:
        weight = self.weight_of(batch)
        return value if weight is None else value * weight.to(value.dtype)


def pick(values: NDArray[Any], batch: LossBatch) -> Tensor:
    """(n, ...) what an array of all samples, (N, ...), holds of a batch."""
    assert batch.index is not None
    return torch.from_numpy(values[batch.index.cpu().numpy()]).to(batch.logits.device)


class Unit(nn.Module):
    """One linear unit on the embedding, (N, d) to (N,), float32 or as asked for, also under autocast; begins at 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, embedding: Tensor, dtype: torch.dtype) -> Tensor:
        if embedding.ndim != 2 or embedding.shape[1] != len(self.weight):
            raise BatchError(
                f"embedding of shape {tuple(embedding.shape)}: want (N, {len(self.weight)}); set loss.params.width"
            )
        return (embedding.to(dtype) * self.weight.to(dtype)).sum(1) + self.bias.to(dtype)


def build_base(name: str, params: Mapping[str, Any] | None, *, num_classes: int) -> Loss:
    """The stateless loss that a method weights."""
    misplaced = common_parameters().keys() & (params or {}).keys()
    if misplaced:
        raise ConfigError(
            f"loss.params.base_params: {min(misplaced)} is an option of the whole loss; move it to loss.params"
        )
    base = build_loss(name, num_classes=num_classes, **(params or {}))
    if base.needs_index:
        raise ConfigError(f"loss.params.base: {name!r} keeps state itself; choose a loss without, as 'ce' or 'gce'")
    return base
