"""All that changes while a network is trained, in one place, so that a checkpoint holds all of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR

from models import distributed
from models.losses import Loss
from models.networks.network import Network
from models.training import checkpoint
from models.training.averages import Average
from models.training.meta import Constant

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class TrainState:
    """A training that stands after `step` steps of `epoch`.

    Randomness is no part of it: every step draws from a seed of its own, named by its numbers.
    """

    network: Network
    loss: Loss
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    meta: Constant  # of the loss's own numbers
    average: Average  # of the weights
    epoch: int = 0  # in progress, from 0
    step: int = 0  # done in it
    total: float = 0.0  # of the loss over the photos that this worker saw in it
    seconds: float = 0.0  # that it took

    def save(self, path: Path, *, key: str) -> None:
        """Called by every worker, as each holds a part of what is saved."""
        distributed.average_buffers(self.network)
        content = {
            "key": key,
            "epoch": self.epoch,
            "step": self.step,
            "total": distributed.total(self.total),
            "seconds": self.seconds,
            "network": self.network.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "meta": self.meta.state_dict(),
            "average": self.average.state_dict(),
        }
        if distributed.rank() == 0:
            checkpoint.save(path, content)

    def restore(self, path: Path, *, key: str) -> None:
        """Goes on where `save` was called, by as many workers as there are now."""
        content = checkpoint.load(path, key=key)
        for name in ("network", "loss", "optimizer", "schedule", "meta", "average"):
            getattr(self, name).load_state_dict(content[name])
        self.epoch, self.step, self.seconds = content["epoch"], content["step"], content["seconds"]
        self.total = content["total"] if distributed.rank() == 0 else 0.0
        log.info("continuing after epoch %d and %d steps of the next", self.epoch, self.step)

    def next_epoch(self) -> None:
        """On to the next epoch."""
        self.epoch, self.step, self.total, self.seconds = self.epoch + 1, 0, 0.0, 0.0


@dataclass
class Interval:
    """Says when `minutes` are over, again and again."""

    minutes: float
    clock: Callable[[], float] = time.monotonic
    since: float = field(init=False)

    def __post_init__(self) -> None:
        self.since = self.clock()

    def over(self) -> bool:
        if self.clock() - self.since < self.minutes * 60:
            return False
        self.since = self.clock()
        return True


def seed_step(generator: torch.Generator, *numbers: int) -> None:
    """Seeds a step by its numbers: the generator of its views, alike for all workers, and torch's own, of dropout."""
    views, *dropout = np.random.SeedSequence(numbers).generate_state(1 + distributed.world(), np.uint64) >> np.uint64(1)
    generator.manual_seed(int(views))
    torch.manual_seed(int(dropout[distributed.rank()]))
