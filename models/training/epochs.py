"""The training loop, for one worker or several."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from durable import replacing
from models import distributed
from models.data.mixing import Label, labels_of
from models.data.samplers import Sampler
from models.errors import ConfigError
from models.losses import Loss
from models.losses.chunked import chunked_loss
from models.networks.inputs import Inputs
from models.networks.margins import Angular
from models.networks.network import Network
from models.recipe.config import Train
from models.training.averages import Average, recomputing_bn
from models.training.classifiers import linear_rows, set_classifier
from models.training.meta import Constant
from models.training.optimise import absolute_weights, learning_rate, make_optimizer, trainable_parameters
from models.training.sample_weights import SampleWeights, jacobian_norm
from models.training.train_state import Interval, TrainState, seed_step

log = logging.getLogger(__name__)

MAX_GRADIENT_NORM = 5.0
MIN_PHOTOS = 2  # photos of one worker in one step, because of batch norm

Answers = Callable[[], tuple[Tensor, float]]  # log_p (N,) of the training photos' labels, accuracy on selection photos


def fit(
    network: Network,
    loss: Loss,
    inputs: Inputs,
    *,
    sampler: Sampler,
    sample_weights: SampleWeights,
    out: Path,
    key: str,
    ask: Answers,
    meta: Constant,
    epochs_before: int = 0,
) -> None:
    """Trains a network, or resumes from out/checkpoint.pt. An angular classifier becomes a linear one at the end.

    Args:
        loss: a loss after `begin`.
        ask: computes the network's answers; called before the epochs for which the loss wants them.
        meta: changes the hyperparameters of the loss during training.
        epochs_before: epochs of the training that this one continues; a loss with a warm-up counts them.
    """
    settings = sampler.settings
    steps = num_steps(sampler.length, settings, workers=distributed.world())
    state = initial_state(network, loss, meta=meta, settings=settings, steps=steps)
    resume(state, out, key=key)
    interval = Interval(settings.checkpoint_minutes)

    def save_if_due() -> None:
        if distributed.agree(interval.over()):
            state.save(out / "checkpoint.pt", key=key)

    while state.epoch < settings.epochs:
        if state.step == 0 and loss.wants_answers(epochs_before + state.epoch):
            log_p, accuracy = ask()
            loss.take_answers(log_p, accuracy=accuracy)
        loss.start_epoch(epochs_before + state.epoch)
        meta.start_epoch(state.epoch, num_epochs=settings.epochs)
        drawn = sampler.draw(state.epoch)
        train_epoch(
            state, inputs, np.array_split(drawn, steps), torch.from_numpy(sampler.target), settings=settings,
            seed=sampler.seed, sample_weights=sample_weights.to(network.mean.device), after_step=save_if_due,
        )  # fmt: skip
        loss.end_epoch()
        state.average.end_epoch(left=settings.epochs - state.epoch - 1)
        report(out, epoch=state.epoch + 1, num_epochs=settings.epochs, **figures(state, len(drawn)))
        state.next_epoch()
        state.save(out / "checkpoint.pt", key=key)
    finish(state, inputs, sampler, steps=steps)


def resume(state: TrainState, out: Path, *, key: str) -> None:
    """Restores out/checkpoint.pt, if there is one, and cuts out/metrics.jsonl to the epochs that it covers."""
    if (out / "checkpoint.pt").exists():
        state.restore(out / "checkpoint.pt", key=key)
    truncate_metrics(out / "metrics.jsonl", state.epoch)


def finish(state: TrainState, inputs: Inputs, sampler: Sampler, *, steps: int) -> None:
    """Applies the averaged weights, if any, and replaces an angular classifier by a linear one."""
    if sampler.settings.averages:
        update_bn(state, inputs, sampler, steps=steps)
    head = state.network.head
    if isinstance(head.classifier, Angular):
        set_classifier(head, linear_rows(state.network, inputs, sampler.target), None)


def initial_state(network: Network, loss: Loss, *, meta: Constant, settings: Train, steps: int) -> TrainState:
    """State of a new training, with its optimiser and schedule; `steps`: steps of an epoch."""
    optimizer = make_optimizer(network, loss, settings)
    schedule = LambdaLR(optimizer, lambda step: learning_rate(step, steps=steps, settings=settings))
    average = Average(trainable_parameters(optimizer), settings)
    return TrainState(network=network, loss=loss, optimizer=optimizer, schedule=schedule, meta=meta, average=average)


def num_steps(num_draws: int, settings: Train, *, workers: int) -> int:
    """Number of steps of an epoch, with batches of nearly equal size.

    Raises:
        ConfigError: the smallest batch does not have enough photos for every worker.
    """
    steps = min(math.ceil(num_draws / settings.batch_size), num_draws // MIN_PHOTOS)
    if num_draws // steps < MIN_PHOTOS * workers:
        raise ConfigError(
            f"train.batch_size: {settings.batch_size} of {num_draws} photos gives batches of {num_draws // steps}, but each "
            f"of {workers} workers needs {MIN_PHOTOS}; raise train.batch_size, or start fewer workers (train.workers)"
        )
    return steps


def train_epoch(
    state: TrainState,
    inputs: Inputs,
    order: list[NDArray[np.int64]],
    target: Tensor,
    *,
    settings: Train,
    seed: int,
    sample_weights: SampleWeights,
    after_step: Callable[[], None],
) -> None:
    """Runs the remaining steps of the epoch.

    Args:
        order: positions of the photos of each step.
        target: (N,) classes of all training photos.
        after_step: called after every step but the last.
    """
    train_mode(state.network, frozen=settings.backbone_lr_scale == 0)
    state.loss.train()
    generator = torch.Generator()
    batches = inputs.training(order[state.step :], generator, size_share=size_share(state.epoch, settings))
    started = time.perf_counter() - state.seconds
    for step in range(state.step, len(order)):
        seed_step(generator, seed, state.epoch, step)
        photos, share = next(batches)
        labels = labels_of(order[step], target, share=share, device=photos.device)
        take_step(
            state, inputs, photos, labels, size=len(order[step]), settings=settings, sample_weights=sample_weights
        )
        state.step, state.seconds = step + 1, time.perf_counter() - started
        if state.step < len(order):
            after_step()


def size_share(epoch: int, settings: Train) -> float:
    """Side of an epoch's views, relative to the member's size: rises linearly from start_size to 1 in the last epoch."""
    done = epoch / (settings.epochs - 1) if settings.epochs > 1 else 1.0
    return settings.start_size + (1 - settings.start_size) * done


def take_step(
    state: TrainState,
    inputs: Inputs,
    batch: Tensor,
    labels: Sequence[Label],
    *,
    size: int,
    settings: Train,
    sample_weights: SampleWeights,
) -> None:
    """Updates the network once.

    Args:
        batch: this worker's part of the batch.
        size: photos in the whole batch of all workers.
    """
    state.meta.step(batch, labels[0].target, state.optimizer)
    value = loss_of(state, inputs, batch, labels, rows=settings.head_rows, sample_weights=sample_weights).sum()
    objective = value / size
    if settings.l1:
        frozen = settings.backbone_lr_scale == 0
        objective = objective + settings.l1 / distributed.world() * absolute_weights(state.network, frozen=frozen)
    state.optimizer.zero_grad(set_to_none=True)
    objective.backward()
    distributed.sum_gradients(trainable_parameters(state.optimizer))
    nn.utils.clip_grad_norm_(trainable_parameters(state.optimizer), MAX_GRADIENT_NORM)
    state.optimizer.step()
    state.schedule.step()
    state.average.end_step()
    state.total += value.item()


def loss_of(
    state: TrainState,
    inputs: Inputs,
    batch: Tensor,
    labels: Sequence[Label],
    *,
    rows: int,
    sample_weights: SampleWeights,
) -> Tensor:
    """(N,) weighted loss of each photo, averaged over its labels by their shares.

    Args:
        rows: logits of this many photos are held at a time; 0: of the whole batch.
    """
    head, values = state.network.head, []
    with half_precision(batch):
        if rows:
            weight, embedding = head.rows, inputs.embedding(batch)
            for label in labels:
                value = chunked_loss(state.loss, weight, embedding, label.target, label.index, rows=rows)
                values.append(label.share * sample_weights.weight[label.index] * value)
            return torch.stack(values).sum(0)
        logits, embedding = inputs.forward(batch)
    for label in labels:
        value = state.loss(logits, label.target, label.index, embedding) * sample_weights.weight[label.index]
        if sample_weights.har is not None:
            value = value + sample_weights.har[label.target] * jacobian_norm(logits, label.target, head.rows)
        values.append(label.share * value)
    return torch.stack(values).sum(0)


def half_precision(batch: Tensor) -> torch.autocast:
    """Context that computes in bfloat16 on GPUs, and changes nothing on CPUs."""
    return torch.autocast(batch.device.type, dtype=torch.bfloat16, enabled=batch.device.type == "cuda")


def train_mode(network: Network, *, frozen: bool) -> None:
    """Switches to training mode; a frozen backbone stays in evaluation mode, to keep its batch norm statistics."""
    network.train()
    if frozen:
        network.backbone.eval()


def update_bn(state: TrainState, inputs: Inputs, sampler: Sampler, *, steps: int) -> None:
    """Copies the averaged weights into the network, and recomputes its batch norm statistics over an epoch of views."""
    network, settings, generator = state.network, sampler.settings, torch.Generator()
    state.average.apply()
    batches = inputs.training(np.array_split(sampler.draw(settings.epochs - 1), steps), generator)
    part = network.head if settings.backbone_lr_scale == 0 else network
    with torch.no_grad(), recomputing_bn(network, part=part):
        for step in range(steps):
            seed_step(generator, sampler.seed, settings.epochs, step)
            photos, _ = next(batches)
            with half_precision(photos):
                inputs.embedding(photos)
    distributed.average_buffers(network)


def figures(state: TrainState, num_drawn: int) -> dict[str, float]:
    """Metrics of an epoch: loss, learning rate, speed, and those of the loss and of its hyperparameters."""
    return {
        "loss": distributed.total(state.total) / num_drawn,
        "lr": float(state.schedule.get_last_lr()[0]),
        "photos_per_s": num_drawn / state.seconds,
        **state.loss.figures(),
        **state.meta.figures(),
    }


def truncate_metrics(metrics: Path, epoch: int) -> None:
    """Removes the lines of epochs that a killed run reported but did not save in a checkpoint."""
    if metrics.exists() and distributed.rank() == 0:
        lines = metrics.read_bytes().splitlines(keepends=True)
        with replacing(metrics) as file:
            file.writelines(lines[:epoch])


def report(out: Path, *, epoch: int, num_epochs: int, **figures: float) -> None:
    """Appends a line to metrics.jsonl, and logs about four lines in a whole training."""
    if distributed.rank():
        return
    line = {"epoch": epoch, **{key: round(value, 6) for key, value in figures.items()}}
    with (out / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    if epoch % max(num_epochs // 4, 1) == 0 or epoch == num_epochs:
        log.info("epoch %d of %d  loss %.3f  %.0f photos/s", epoch, num_epochs, line["loss"], line["photos_per_s"])
