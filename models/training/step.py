"""One step of a training: the losses of a batch, their gradients, and the change of the weights.

Nothing here waits for the device: a GPU works through the steps that the host has queued, and numbers are read later
(models.training.watch).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models import distributed
from models.data.mixing import Label
from models.errors import ConfigError
from models.losses import Loss
from models.losses.chunked import chunked_loss
from models.networks.inputs import half_precision
from models.networks.network import Head, Network, Output
from models.recipe.config import Train
from models.training.optimise import absolute_weights, trainable_parameters
from models.training.parallel import only_own_gradients
from models.training.sample_weights import SampleWeights, jacobian_norm
from models.training.train_state import TrainState

log = logging.getLogger(__name__)

MAX_GRADIENT_NORM = 5.0
MIN_PHOTOS = 2  # photos of one worker in one pass, because of batch norm


class Losses(NamedTuple):
    """Weighted loss of each photo, (N,), and the penalty on the weights, a scalar, if the recipe has one."""

    values: Tensor
    penalty: Tensor | None


class Learner(nn.Module):
    """A network and its loss as one module whose forward gives the losses of a batch.

    So torch's data parallel sees all of a step.

    Args:
        part: the network, or its head if the inputs are fixed features.
    """

    def __init__(
        self, network: Network, loss: Loss, *, part: Network | Head, sample_weights: SampleWeights, settings: Train
    ) -> None:
        super().__init__()
        self.network, self.loss = network, loss
        self.sample_weights, self.settings = sample_weights, settings
        self.run: Callable[[Tensor], Output] = torch.compile(part.forward) if settings.compile else part.__call__
        self.embed: Callable[[Tensor], Tensor] = torch.compile(part.embedding) if settings.compile else part.embedding

    def forward(self, batch: Tensor, labels: Sequence[Label]) -> Losses:
        """Losses of the photos of a batch, each averaged over its labels by their shares."""
        with half_precision(batch.device):
            of_label = self._in_rows(batch) if self.settings.head_rows else self._at_once(batch)
        values = torch.stack([label.share * of_label(label) for label in labels]).sum(0)
        return Losses(values, self._penalty())

    def _at_once(self, batch: Tensor) -> Callable[[Label], Tensor]:
        logits, embedding = self.run(batch)

        def of_label(label: Label) -> Tensor:
            weight, har = self.sample_weights.weight, self.sample_weights.har
            value: Tensor = self.loss(logits, label.target, label.index, embedding) * weight[label.index]
            if har is not None:
                value = value + har[label.target] * jacobian_norm(logits, label.target, self.network.head.rows)
            return value

        return of_label

    def _in_rows(self, batch: Tensor) -> Callable[[Label], Tensor]:
        rows, embedding = self.network.head.rows, self.embed(batch)

        def of_label(label: Label) -> Tensor:
            with half_precision(batch.device):
                value = chunked_loss(
                    self.loss, rows, embedding, label.target, label.index, rows=self.settings.head_rows
                )
            return self.sample_weights.weight[label.index] * value

        return of_label

    def _penalty(self) -> Tensor | None:
        if not self.settings.l1:
            return None
        return self.settings.l1 * absolute_weights(self.network, frozen=self.settings.backbone_lr_scale == 0)


def take_step(state: TrainState, batch: Tensor, labels: Sequence[Label], *, size: int, settings: Train) -> Tensor:
    """Updates the network once. Returns the loss (n,) of each photo of this worker, detached.

    Args:
        batch: this worker's part of the batch.
        size: photos in the whole batch of all workers.
    """
    state.meta.step(batch, labels[0].target, state.optimizer)
    values = add_gradients(state, batch, labels, size=size)
    nn.utils.clip_grad_norm_(trainable_parameters(state.optimizer), MAX_GRADIENT_NORM)
    state.optimizer.step()
    state.schedule.step()
    state.average.end_step()
    return values


def add_gradients(state: TrainState, batch: Tensor, labels: Sequence[Label], *, size: int) -> Tensor:
    """Gradients of the mean loss over all workers; returns the loss (n,) of each photo of this worker, detached.

    A batch for which the device lacks memory passes through the network in more and smaller parts, now and in all later
    steps. The batch of the optimiser stays the same; batch norm sees the parts. Nothing is left of the passes before.

    Raises:
        ConfigError: the memory does not suffice for the smallest part, or several workers share the training: the others
            would wait for this one.
    """
    state.snapshot.take()
    while True:
        state.optimizer.zero_grad(set_to_none=True)
        try:
            return _gradients_of_parts(state, batch, labels, size=size)
        except torch.OutOfMemoryError:
            more = most_parts(2 * state.passes, size)
            if more <= state.passes or distributed.world() > 1:
                raise out_of_memory(batch, state.passes) from None
        state.passes = more
        state.snapshot.restore()
        torch.cuda.empty_cache()
        log.warning("out of memory on %s: batches pass through the network in %d parts from now on",
                    batch.device, state.passes)  # fmt: skip


def out_of_memory(batch: Tensor, passes: int) -> ConfigError:
    """The error about a device whose memory does not suffice for a part of a batch."""
    photos = math.ceil(len(batch) / passes)
    size = f" of {batch.shape[-1]} px" if batch.ndim == 4 else ""  # features of a frozen backbone have none
    return ConfigError(
        f"train.micro_batch: {batch.device} has too little memory for {photos} photos{size} at a time; "
        f"set it to {max(photos // 2, MIN_PHOTOS)} or less, or train.head_rows, or a smaller members.size"
    )


def _gradients_of_parts(state: TrainState, batch: Tensor, labels: Sequence[Label], *, size: int) -> Tensor:
    """Passes the batch forward and backward in `state.passes` parts, the last of which exchanges the gradients."""
    found, parts = torch.empty(len(batch), device=batch.device), parts_of(len(batch), most_parts(state.passes, size))
    for number, part in enumerate(parts):
        with only_own_gradients(state.learner, when=number < len(parts) - 1):
            losses: Losses = state.learner(batch[part], [label[part] for label in labels])
            objective = losses.values.sum() * distributed.world() / size  # torch takes the mean over the workers
            if losses.penalty is not None:
                objective = objective + losses.penalty / len(parts)
            objective.backward()
        found[part] = losses.values.detach()
    return found


def most_parts(wanted: int, size: int) -> int:
    """Parts in which every worker can pass its photos of a batch of `size`: the wanted number, or fewer of MIN_PHOTOS."""
    return max(min(wanted, size // distributed.world() // MIN_PHOTOS), 1)


def parts_of(length: int, count: int) -> list[slice]:
    """`count` nearly equal parts of `length` photos."""
    parts = np.array_split(np.arange(length), count)
    return [slice(int(part[0]), int(part[-1]) + 1) for part in parts]
