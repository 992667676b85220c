"""The training loop, from the first epoch to the last, by one worker or several."""

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
from models.training.averages import Average, measuring
from models.training.classifiers import linear_rows, set_classifier
from models.training.meta import Constant
from models.training.optimise import absolute_weights, learning_rate, make_optimizer, trainable_parameters
from models.training.sample_weights import SampleWeights, jacobian_norm
from models.training.train_state import Interval, TrainState, seed_step

log = logging.getLogger(__name__)

LARGEST_GRADIENT = 5.0
LEAST = 2  # photos of one worker in one step, because of batch norm

Answers = Callable[[], tuple[Tensor, float]]  # log_p (N,) of the training photos' labels, accuracy on validation photos


def fit(
    network: Network, loss: Loss, inputs: Inputs, *, sampler: Sampler, emphasis: SampleWeights, out: Path, key: str, ask: Answers,
    meta: Constant, epochs_before: int = 0,
) -> None:  # fmt: skip
    """Trains a network with a loss that has begun, or goes on from out/checkpoint.pt; leaves it a linear classifier.

    Args:
        sampler: of the photos of `inputs`.
        key: of the checkpoint.
        ask: called before the epochs for which the loss wants answers.
        meta: of the numbers of the loss.
        epochs_before: of the training that this one continues; the loss, which may warm up, counts them.
    """
    settings, steps = sampler.settings, num_steps(sampler.length, sampler.settings, workers=distributed.world())
    optimizer = make_optimizer(network, loss, settings)
    schedule = LambdaLR(optimizer, lambda step: learning_rate(step, steps=steps, settings=settings))
    state = TrainState(network=network, loss=loss, optimizer=optimizer, schedule=schedule, meta=meta,
                    average=Average(trainable_parameters(optimizer), settings))  # fmt: skip
    if (out / "checkpoint.pt").exists():
        state.restore(out / "checkpoint.pt", key=key)
    forget_after(out / "metrics.jsonl", state.epoch)
    interval = Interval(settings.checkpoint_minutes)

    def save_sometimes() -> None:
        if distributed.agree(interval.over()):
            state.save(out / "checkpoint.pt", key=key)

    while state.epoch < settings.epochs:
        if state.step == 0 and loss.wants_answers(epochs_before + state.epoch):
            log_p, accuracy = ask()
            loss.take_answers(log_p, accuracy=accuracy)
        loss.start_epoch(epochs_before + state.epoch)
        meta.start_epoch(state.epoch, of=settings.epochs)
        drawn = sampler.draw(state.epoch)
        train_epoch(state, inputs, np.array_split(drawn, steps), torch.from_numpy(sampler.target), settings=settings,
                    seed=sampler.seed, emphasis=emphasis.to(network.mean.device), after_step=save_sometimes)  # fmt: skip
        loss.end_epoch()
        state.average.end_epoch(left=settings.epochs - state.epoch - 1)
        report(out, epoch=state.epoch + 1, of=settings.epochs, **figures(state, len(drawn)))
        state.next_epoch()
        state.save(out / "checkpoint.pt", key=key)
    if settings.averages:
        update_bn(state, inputs, sampler, steps=steps)
    if isinstance(network.head.classifier, Angular):
        set_classifier(network.head, linear_rows(network, inputs, sampler.target), None)


def num_steps(num_draws: int, settings: Train, *, workers: int) -> int:
    """Steps of an epoch; its batches are as even as it goes.

    Raises:
        ConfigError: the smallest does not give every worker enough to learn from.
    """
    steps = min(math.ceil(num_draws / settings.batch_size), num_draws // LEAST)
    if num_draws // steps < LEAST * workers:
        raise ConfigError(
            f"train.batch_size: {settings.batch_size} of {num_draws} photos gives batches of {num_draws // steps}, and each "
            f"of {workers} workers needs {LEAST}; raise it, or start fewer workers (train.workers)"
        )
    return steps


def train_epoch(
    state: TrainState, inputs: Inputs, order: list[NDArray[np.int64]], target: Tensor, *, settings: Train, seed: int,
    emphasis: SampleWeights, after_step: Callable[[], None],
) -> None:  # fmt: skip
    """The steps of the epoch that are not done yet."""
    train_mode(state.network, frozen=settings.backbone_lr_scale == 0)
    state.loss.train()
    generator = torch.Generator()
    batches = inputs.training(order[state.step :], generator, size_share=size_share(state.epoch, settings))
    started = time.perf_counter() - state.seconds
    for step in range(state.step, len(order)):
        seed_step(generator, seed, state.epoch, step)
        photos, share = next(batches)
        labels = labels_of(order[step], target, share=share, device=photos.device)
        take_step(state, inputs, photos, labels, size=len(order[step]), settings=settings, emphasis=emphasis)
        state.step, state.seconds = step + 1, time.perf_counter() - started
        if state.step < len(order):
            after_step()


def size_share(epoch: int, settings: Train) -> float:
    """Side of an epoch's views as a share of the member's: from start_size in the first to 1 in the last, evenly."""
    done = epoch / (settings.epochs - 1) if settings.epochs > 1 else 1.0
    return settings.start_size + (1 - settings.start_size) * done


def take_step(
    state: TrainState, inputs: Inputs, batch: Tensor, labels: Sequence[Label], *, size: int, settings: Train,
    emphasis: SampleWeights,
) -> None:  # fmt: skip
    """One update from a batch of `size` photos, of which this worker has the part that it is given."""
    state.meta.step(batch, labels[0].target, state.optimizer)
    value = loss_of(state, inputs, batch, labels, rows=settings.head_rows, emphasis=emphasis).sum()
    objective = value / size
    if settings.l1:
        frozen = settings.backbone_lr_scale == 0
        objective = objective + settings.l1 / distributed.world() * absolute_weights(state.network, frozen=frozen)
    state.optimizer.zero_grad(set_to_none=True)
    objective.backward()
    distributed.sum_gradients(trainable_parameters(state.optimizer))
    nn.utils.clip_grad_norm_(trainable_parameters(state.optimizer), LARGEST_GRADIENT)
    state.optimizer.step()
    state.schedule.step()
    state.average.end_step()
    state.total += value.item()


def loss_of(
    state: TrainState, inputs: Inputs, batch: Tensor, labels: Sequence[Label], *, rows: int, emphasis: SampleWeights
) -> Tensor:
    """(N,) loss of each photo, the mean of those of its labels; with `rows`, the logits of so many exist at a time."""
    head, values = state.network.head, []
    with half_precision(batch):
        if rows:
            weight, embedding = head.rows, inputs.embedding(batch)
            for label in labels:
                value = chunked_loss(state.loss, weight, embedding, label.target, label.index, rows=rows)
                values.append(label.share * emphasis.weight[label.index] * value)
            return torch.stack(values).sum(0)
        logits, embedding = inputs.forward(batch)
    for label in labels:
        value = state.loss(logits, label.target, label.index, embedding) * emphasis.weight[label.index]
        if emphasis.har is not None:
            value = value + emphasis.har[label.target] * jacobian_norm(logits, label.target, head.rows)
        values.append(label.share * value)
    return torch.stack(values).sum(0)


def half_precision(batch: Tensor) -> torch.autocast:
    """On GPUs."""
    return torch.autocast(batch.device.type, dtype=torch.bfloat16, enabled=batch.device.type == "cuda")


def train_mode(network: Network, *, frozen: bool) -> None:
    """Training mode, in which a frozen backbone keeps its statistics."""
    network.train()
    if frozen:
        network.backbone.eval()


def update_bn(state: TrainState, inputs: Inputs, sampler: Sampler, *, steps: int) -> None:
    """Puts the averaged weights into the network, with the statistics of batch norm that they have over fresh views of an epoch."""
    network, settings, generator = state.network, sampler.settings, torch.Generator()
    state.average.put()
    batches = inputs.training(np.array_split(sampler.draw(settings.epochs - 1), steps), generator)
    part = network.head if settings.backbone_lr_scale == 0 else network
    with torch.no_grad(), measuring(network, part=part):
        for step in range(steps):
            seed_step(generator, sampler.seed, settings.epochs, step)
            photos, _ = next(batches)
            with half_precision(photos):
                inputs.embedding(photos)
    distributed.average_buffers(network)


def figures(state: TrainState, num_drawn: int) -> dict[str, float]:
    """What an epoch was like, and what the loss has to tell."""
    return {
        "loss": distributed.total(state.total) / num_drawn,
        "lr": float(state.schedule.get_last_lr()[0]),
        "photos_per_s": num_drawn / state.seconds,
        **state.loss.figures(),
        **state.meta.figures(),
    }


def forget_after(metrics: Path, epoch: int) -> None:
    """Cuts the lines of epochs that a killed run reported and could not save."""
    if metrics.exists() and distributed.rank() == 0:
        lines = metrics.read_bytes().splitlines(keepends=True)
        with replacing(metrics) as file:
            file.writelines(lines[:epoch])


def report(out: Path, *, epoch: int, of: int, **figures: float) -> None:
    """One line of metrics.jsonl; four lines of the log in a whole training."""
    if distributed.rank():
        return
    line = {"epoch": epoch, **{key: round(value, 6) for key, value in figures.items()}}
    with (out / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    if epoch % max(of // 4, 1) == 0 or epoch == of:
        log.info("epoch %d of %d  loss %.3f  %.0f photos/s", epoch, of, line["loss"], line["photos_per_s"])
