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
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from durable import replacing
from models import distributed
from models.data.mixing import labels_of
from models.data.samplers import Sampler
from models.errors import ConfigError
from models.losses import Loss
from models.networks.inputs import Inputs, half_precision
from models.networks.margins import Angular
from models.networks.network import Network
from models.progress import Progress
from models.recipe.config import Train
from models.training.averages import Average, recomputing_bn
from models.training.classifiers import linear_rows, set_classifier
from models.training.meta import Constant
from models.training.optimise import learning_rate, make_optimizer, trainable_parameters
from models.training.parallel import freeze_unused, gather, in_parallel, shard, spread
from models.training.sample_weights import SampleWeights
from models.training.saving import saving
from models.training.snapshot import Snapshot
from models.training.step import MIN_PHOTOS, Learner, take_step
from models.training.train_state import TrainState, seed_step
from models.training.watch import LossWatch

log = logging.getLogger(__name__)

Answers = Callable[[], tuple[Tensor, float]]  # log_p (N,) of the training photos' labels, accuracy on selection photos


def fit(
    network: Network,
    loss: Loss,
    inputs: Inputs,
    *,
    ids: Sequence[str] | NDArray[np.object_],
    sampler: Sampler,
    sample_weights: SampleWeights,
    out: Path,
    key: str,
    ask: Answers,
    meta: Constant,
    epochs_before: int = 0,
) -> None:
    """Trains a network, or resumes from out/checkpoint.pt. An angular classifier becomes a linear one at the end.

    SIGTERM saves a checkpoint and exits.

    Args:
        loss: a loss after `begin`.
        ids: (N,) ids of the training photos, for messages.
        ask: computes the network's answers; called before the epochs for which the loss wants them.
        meta: changes the hyperparameters of the loss during training.
        epochs_before: epochs of the training that this one continues; a loss with a warm-up counts them.
    """
    settings = sampler.settings
    steps = num_steps(sampler.length, settings, workers=distributed.world())
    state = initial_state(
        network, loss, inputs, ids=ids, sample_weights=sample_weights, meta=meta, sampler=sampler, steps=steps
    )
    resume(state, out, key=key)
    progress = Progress("training", round((settings.epochs - state.epoch - state.step / steps) * sampler.length))
    with saving(out / "checkpoint.pt", key=key, minutes=settings.checkpoint_minutes) as checkpoints:
        for epoch in range(state.epoch, settings.epochs):
            if state.step == 0 and loss.wants_answers(epochs_before + epoch):
                take_answers(state, ask)
            loss.start_epoch(epochs_before + epoch)
            meta.start_epoch(epoch, num_epochs=settings.epochs)
            progress.note = f"epoch {epoch + 1} of {settings.epochs}"
            order = np.array_split(sampler.draw(epoch), steps)
            train_epoch(state, inputs, order, sampler=sampler, progress=progress, after_step=checkpoints.if_due)
            loss.end_epoch()
            state.average.end_epoch(left=settings.epochs - epoch - 1)
            report(out, epoch=epoch + 1, num_epochs=settings.epochs, **figures(state, sampler.length))
            state.next_epoch()
            checkpoints.now(state)
    progress.done()
    gather(state.learner)
    finish(state, inputs, sampler, steps=steps)


def take_answers(state: TrainState, ask: Answers) -> None:
    """Gives the loss the network's answers for all training photos."""
    gather(state.learner)
    log_p, accuracy = ask()
    spread(state.learner)
    state.loss.take_answers(log_p, accuracy=accuracy)


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


def initial_state(
    network: Network,
    loss: Loss,
    inputs: Inputs,
    *,
    ids: Sequence[str] | NDArray[np.object_],
    sample_weights: SampleWeights,
    meta: Constant,
    sampler: Sampler,
    steps: int,
) -> TrainState:
    """State of a new training, with its optimiser and schedule; `steps`: steps of an epoch."""
    device, settings = network.mean.device, sampler.settings
    learner = Learner(network, loss, part=inputs.part, sample_weights=sample_weights.to(device), settings=settings)
    if settings.shard:
        shard(learner, network.backbone)
    optimizer = make_optimizer(network, loss, settings)
    trained = trainable_parameters(optimizer)
    learner.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_()
    if distributed.world() > 1 and not settings.shard:  # the optimiser knows them, as it does in a single process
        freeze_unused(inputs.part, sample=next(inputs.evaluation(slice(0, 1))))
    room = math.ceil(math.ceil(sampler.length / steps) / distributed.world())  # photos of this worker in a batch
    return TrainState(
        network=network, loss=loss, learner=in_parallel(learner), optimizer=optimizer, meta=meta,
        schedule=LambdaLR(optimizer, lambda step: learning_rate(step, steps=steps, settings=settings)),
        average=Average(trained, settings), watch=LossWatch(ids, room=room, device=device),
        snapshot=Snapshot(inputs.part, loss), passes=math.ceil(room / (settings.micro_batch or room)),
    )  # fmt: skip


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
    *,
    sampler: Sampler,
    progress: Progress,
    after_step: Callable[[TrainState], None],
) -> None:
    """Runs the remaining steps of the epoch.

    Args:
        order: positions of the photos of each step.
        after_step: called after every step but the last.
    """
    settings = sampler.settings
    train_mode(state.network, frozen=settings.backbone_lr_scale == 0)
    state.loss.train()
    generator, target = torch.Generator(), torch.from_numpy(sampler.target)
    batches = inputs.training(order[state.step :], generator, size_share=size_share(state.epoch, settings))
    started = time.perf_counter() - state.seconds
    for step in range(state.step, len(order)):
        seed_step(generator, sampler.seed, state.epoch, step)
        asked = time.perf_counter()
        photos, share, batch = next(batches)
        waited = time.perf_counter() - asked
        labels = labels_of(batch, target, share=share, device=photos.device)
        values = take_step(state, photos, labels, size=len(order[step]), settings=settings)
        state.watch.add(values, batch[distributed.part(len(batch))], lr=state.lr)
        progress.add(len(order[step]), waited=waited, loss=state.watch.last_mean)
        state.step, state.waited, state.seconds = step + 1, state.waited + waited, time.perf_counter() - started
        if state.step < len(order):
            after_step(state)
    state.watch.check()
    state.seconds = time.perf_counter() - started


def size_share(epoch: int, settings: Train) -> float:
    """Side of an epoch's views, relative to the member's size: rises linearly from start_size to 1 in the last epoch."""
    done = epoch / (settings.epochs - 1) if settings.epochs > 1 else 1.0
    return settings.start_size + (1 - settings.start_size) * done


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
            photos, *_ = next(batches)
            with half_precision(photos.device):
                inputs.part.embedding(photos)
    distributed.average_buffers(network)


def figures(state: TrainState, num_drawn: int) -> dict[str, float]:
    """Metrics of an epoch: loss, learning rate, speed, share of waiting for photos, and those of the loss."""
    return {
        "loss": state.watch.total() / num_drawn,
        "lr": state.lr,
        "photos_per_s": num_drawn / state.seconds,
        "waiting": state.waited / state.seconds,
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
        log.info("epoch %d of %d  loss %.3f  %.0f photos/s  waits %.0f%%", epoch, num_epochs, line["loss"],
                 line["photos_per_s"], 100 * line["waiting"])  # fmt: skip
