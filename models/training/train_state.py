"""Training state: everything that changes during a training, so that a checkpoint can hold all of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from models import distributed
from models.losses import Loss
from models.networks.network import Network
from models.training import checkpoint, parallel
from models.training.averages import Average
from models.training.checkpoint import Writer
from models.training.meta import Constant
from models.training.snapshot import Snapshot
from models.training.watch import LossWatch

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class TrainState:
    """State of a training after `step` steps of `epoch`.

    It needs no random state, because every step has its own seed, made of the recipe's seed, the epoch and the step.
    """

    network: Network
    loss: Loss
    learner: nn.Module  # both, as torch's data parallel runs them
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    meta: Constant  # of the loss's hyperparameters
    average: Average  # of the weights
    watch: LossWatch
    snapshot: Snapshot  # for a batch that runs out of memory
    epoch: int = 0  # present epoch, from 0
    step: int = 0  # steps done in this epoch
    seconds: float = 0.0  # spent in this epoch
    waited: float = 0.0  # seconds of these spent waiting for photos
    passes: int = 1  # parts in which a batch passes through the network

    @property
    def lr(self) -> float:
        """Present learning rate of the head."""
        return float(self.schedule.get_last_lr()[-1])

    def save(self, writer: Writer, *, key: str) -> None:
        """Hands a checkpoint to the writer. Every worker must call this, because each holds a part of the state.

        Raises:
            BatchError: the loss is not finite, so this state is not worth keeping.
        """
        self.watch.check()
        distributed.average_buffers(self.network)
        content = {
            "key": key,
            "epoch": self.epoch,
            "step": self.step,
            "total": self.watch.total(),
            "seconds": self.seconds,
            "waited": self.waited,
            "passes": self.passes,
            "network": parallel.state_of(self.network),
            "loss": self.loss.state_dict(),
            "optimizer": parallel.optimizer_state_of(self.learner, self.optimizer),
            "schedule": self.schedule.state_dict(),
            "meta": self.meta.state_dict(),
            "average": self.average.state_dict(),
        }
        if distributed.rank() == 0:
            writer.save(content)

    def restore(self, path: Path, *, key: str) -> None:
        """Restores a checkpoint; the number of workers may differ from that at `save`."""
        content = checkpoint.load(path, key=key)
        parallel.load_state(self.network, content["network"])
        parallel.load_optimizer_state(self.learner, self.optimizer, content["optimizer"])
        for name in ("loss", "schedule", "meta", "average"):
            getattr(self, name).load_state_dict(content[name])
        for name in ("epoch", "step", "seconds", "waited", "passes"):
            setattr(self, name, content[name])
        self.watch.sum.fill_(content["total"] if distributed.rank() == 0 else 0.0)
        log.info("resuming after epoch %d and %d steps of the next", self.epoch, self.step)

    def next_epoch(self) -> None:
        """Advances to the next epoch."""
        self.epoch, self.step, self.seconds, self.waited = self.epoch + 1, 0, 0.0, 0.0
        self.watch.sum.zero_()


@dataclass
class Interval:
    """Timer that reports when `minutes` have passed, repeatedly."""

    minutes: float
    clock: Callable[[], float] = time.monotonic
    since: float = field(init=False)

    def __post_init__(self) -> None:
        self.since = self.clock()

    def over(self) -> bool:
        """True if `minutes` have passed since the last time this was True."""
        if self.clock() - self.since < self.minutes * 60:
            return False
        self.since = self.clock()
        return True


def seed_step(generator: torch.Generator, *numbers: int) -> None:
    """Seeds a step by its numbers: the generator of its views, equal on all workers, and torch's own, per worker."""
    views, *dropout = np.random.SeedSequence(numbers).generate_state(1 + distributed.world(), np.uint64) >> np.uint64(1)
    generator.manual_seed(int(views))
    torch.manual_seed(int(dropout[distributed.rank()]))
