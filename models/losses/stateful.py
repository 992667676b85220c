"""Base class of losses with state per sample: a memory, a weight for every sample, and guards for rare classes."""

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
    """Limits how much of a class a method may remove. Ours: the papers' data sets have no rare classes.

    max_share: largest share of a class that may be removed, in [0, 1). n_min: samples of a class that are always kept.
    """

    max_share: float
    n_min: int

    def limit(self, flagged: NDArray[np.bool_], score: NDArray[Any], target: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(N,) bool: the flagged samples that may be removed; lowest scores of each class first, ties by position."""
        size = np.bincount(target)
        allowed = np.minimum(np.floor(self.max_share * size + 1e-9), size - self.n_min)
        rows = np.flatnonzero(flagged)
        rows = rows[np.lexsort((score[rows], target[rows]))]
        rank = np.arange(len(rows)) - np.searchsorted(target[rows], target[rows])
        removed = np.zeros(len(target), bool)
        removed[rows[rank < allowed[target[rows]]]] = True
        return removed


def class_quantile(
    values: NDArray[Any], target: NDArray[np.int64], q: float, *, num_classes: int
) -> NDArray[np.float64]:
    """(C,) q-quantile of the values of each class, linearly interpolated; NaN for a class without values."""
    order = np.lexsort((values, target))
    ordered = np.append(values[order].astype(np.float64), np.nan)
    size = np.bincount(target, minlength=num_classes)
    position = q * (size - 1).clip(0)
    low = np.cumsum(size) - size + np.floor(position).astype(np.int64)
    high = np.where(position > np.floor(position), low + 1, low)
    quantile: NDArray[np.float64] = ordered[low] + (position - np.floor(position)) * (ordered[high] - ordered[low])
    return np.where(size > 0, quantile, np.nan)


class Stateful(Loss):
    """A loss with a memory; the value of a sample is `unweighted` times the sample's weight.

    Weights are set before each epoch from the merged notes of all workers. Their mean over the training set is 1, so
    that removing samples does not shorten the training step.
    """

    needs_index = True
    columns: ClassVar[Mapping[str, Column]] = {}
    name = ""  # name of the loss in files and checkpoints
    weight: NDArray[np.float32] | None = None  # (N,), set by `begin`
    guard: Guard

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.epoch = 0
        self._placed: dict[str, Tensor] = {}  # copies of columns and weights on the device of the batches
        self.facts: dict[str, float] = {}  # state beside the memory that a resumed training needs

    def unweighted(self, batch: LossBatch) -> Tensor:
        """(N,) loss of each sample, before its weight."""
        raise NotImplementedError  # each stateful loss has its own formula here

    def meaning(self) -> dict[str, Any]:
        """Hyperparameters that the meaning of the columns depends on."""
        return {}

    def decide(self) -> None:
        """Sets `weight` for the epoch `self.epoch` from the memory; repeated calls set the same weights."""

    def value(self, batch: LossBatch) -> Tensor:
        return self._weighted(batch, self.unweighted(batch))

    def warmup_value(self, batch: LossBatch) -> Tensor:
        return self._weighted(batch, super().warmup_value(batch))

    @property
    def known(self) -> Memory:
        """The memory; raises BatchError before `begin`."""
        if self.memory is None:
            raise BatchError("this loss keeps state per sample and does not know them yet; call begin(samples) first")
        return self.memory

    def observe(self, batch: LossBatch) -> None:
        # A loss without a gradient is only measured. chunked_loss computes each batch twice, once with a gradient.
        if len(self.known) and self.training and torch.is_grad_enabled():
            with torch.no_grad():
                self.note(batch)

    def note(self, batch: LossBatch) -> None:
        """Adds the observations of a batch to the memory."""

    def begin(self, samples: Samples) -> None:
        super().begin(samples)
        if len(samples.classes) != self.num_classes:
            raise BatchError(
                f"samples: {len(samples.classes)} classes, but the loss was built for {self.num_classes}; "
                "pass the classes of this training"
            )
        self.memory = Memory(samples, self.columns, name=self.name, meaning=self.meaning())
        self.fill_columns()
        self.start_epoch(self.epoch)

    def fill_columns(self) -> None:
        """Fills columns of new samples whose initial value differs from sample to sample."""

    def start_epoch(self, epoch: int) -> None:
        super().start_epoch(epoch)
        self.epoch = epoch
        self._placed.clear()
        if self.memory is not None:
            self.decide()

    def get_extra_state(self) -> dict[str, Any]:
        return {} if self.memory is None else {"memory": self.memory.state(), "facts": dict(self.facts)}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        if state:
            self.known.load(state["memory"])
            self.facts = dict(state["facts"])
            self._placed.clear()
            self.decide()

    def set_weights(self, weight: NDArray[Any]) -> None:
        """Sets the weights of the samples, (N,) >= 0, scaled to the mean 1."""
        self.weight = (weight / weight.mean()).astype(np.float32)
        self._placed.clear()

    def weight_of(self, batch: LossBatch) -> Tensor | None:
        """(n,) weights of a batch; None if the samples are not known, as when a new loss is measured."""
        return None if self.weight is None or batch.index is None else self._rows("weight", self.weight, batch)

    def column_of(self, name: str, batch: LossBatch) -> Tensor:
        """(n, ...) rows of a column of the memory that belong to a batch; columns change between epochs only."""
        return self._rows(name, self.known[name], batch)

    def _rows(self, name: str, values: NDArray[Any], batch: LossBatch) -> Tensor:
        assert batch.index is not None
        if name not in self._placed:
            self._placed[name] = torch.from_numpy(values).to(batch.index.device)
        return self._placed[name][batch.index]

    def shift_of(self, base: Loss) -> LogitShift:
        """Changes to the logits: those of the base loss, with the options of this loss."""
        return dataclasses.replace(base.shift, bias=self.options.logit_bias, prior=self.prior)

    def _weighted(self, batch: LossBatch, value: Tensor) -> Tensor:
        weight = self.weight_of(batch)
        return value if weight is None else value * weight.to(value.dtype)


class Unit(nn.Module):
    """One linear unit on the embedding, (N, d) -> (N,), in the requested dtype also under autocast; starts at 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, embedding: Tensor, dtype: torch.dtype) -> Tensor:
        """(N,) output of the unit; raises BatchError if the embedding has another width."""
        if embedding.ndim != 2 or embedding.shape[1] != len(self.weight):
            raise BatchError(
                f"embedding: shape {tuple(embedding.shape)}, expected (N, {len(self.weight)}); set loss.params.width"
            )
        return (embedding.to(dtype) * self.weight.to(dtype)).sum(1) + self.bias.to(dtype)


def build_base(name: str, params: Mapping[str, Any] | None, *, num_classes: int) -> Loss:
    """The base loss that a method with state weights; the base itself has no state.

    Raises:
        ConfigError: a base with state, a parameter that belongs to loss.params, or what `build_loss` refuses.
    """
    misplaced = common_parameters().keys() & (params or {}).keys()
    if misplaced:
        raise ConfigError(
            f"loss.params.base_params: {min(misplaced)} is an option of the whole loss; move it to loss.params"
        )
    base = build_loss(name, num_classes=num_classes, **(params or {}))
    if base.needs_index:
        raise ConfigError(
            f"loss.params.base: {name!r} keeps state itself; choose a loss without state, such as 'ce' or 'gce'"
        )
    return base
