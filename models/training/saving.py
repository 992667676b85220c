"""Checkpoints of a training: after each epoch, after some minutes, and on SIGTERM, which also ends it."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from models import distributed
from models.training.checkpoint import Writer
from models.training.train_state import Interval, TrainState

log = logging.getLogger(__name__)

EXIT_CODE = 128 + signal.SIGTERM  # of a process that SIGTERM ended


@dataclass(frozen=True)
class Saving:
    """Checkpoints of one training. All workers must call the methods, at the same steps."""

    writer: Writer
    key: str
    interval: Interval
    is_stopped: Callable[[], bool]

    def now(self, state: TrainState) -> None:
        """Saves a checkpoint, which is written while the next steps run."""
        state.save(self.writer, key=self.key)

    def if_due(self, state: TrainState) -> None:
        """Saves a checkpoint if the interval is over, or if a worker has got SIGTERM; then it exits as well."""
        is_stopped, is_due = distributed.any_of(self.is_stopped(), self.interval.over())
        if is_stopped or is_due:
            self.now(state)
        if is_stopped:
            log.warning("stopped by SIGTERM after epoch %d and %d steps of the next; the same command goes on from there",
                        state.epoch, state.step)  # fmt: skip
            raise SystemExit(EXIT_CODE)


@contextmanager
def saving(path: Path, *, key: str, minutes: float) -> Iterator[Saving]:
    """Context of a training that saves to this path. It ends when the last checkpoint is on the disk."""
    with Writer(path) as writer, stop_requested() as is_stopped:
        yield Saving(writer, key, Interval(minutes), is_stopped)


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells if SIGTERM has come; inside the block the signal does nothing else.

    In a thread other than the main one, where Python does not allow a handler, the answer is always no.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    request = threading.Event()
    former = signal.signal(signal.SIGTERM, lambda *_: request.set())
    try:
        yield request.is_set
    finally:
        signal.signal(signal.SIGTERM, former)
