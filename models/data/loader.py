"""Batches decoded ahead by torch's DataLoader in processes of their own, or by threads of this process.

A loader process gets a few arrays of numbers by fork, and writes pixels into memory that it shares with this process, so
its own memory does not depend on the number of photos, and /dev/shm carries none: torch would send a batch as a file there.
"""

from __future__ import annotations

import atexit
import gc
import signal
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

import torch
from torch.utils.data import DataLoader

from models.data.decoder import Decoded, Decoder, Task
from models.errors import LoaderError

THREADS = 2
AHEAD = 2  # batches that each process or thread decodes ahead
PATIENCE_S = 300.0  # without any batch; a batch takes seconds, and a file system that recovers takes minutes


def num_ahead(loaders: int) -> int:
    """Batches whose rows are in use at a time: those decoded ahead, and the one that is being copied."""
    return AHEAD * (loaders or THREADS) + 1


def decoded(decoder: Decoder, tasks: Iterator[Task], *, loaders: int) -> Iterator[Decoded]:
    """The batches of all tasks, in their order.

    Args:
        tasks: taken `num_ahead(loaders) - 1` ahead.
        loaders: number of processes; 0: THREADS threads.

    Raises:
        LoaderError: a process was killed, or no batch came for PATIENCE_S.
    """
    return _by_processes(decoder, tasks, loaders) if loaders else _by_threads(decoder, tasks)


def _by_threads(decoder: Decoder, tasks: Iterator[Task]) -> Iterator[Decoded]:
    pool, ahead = ThreadPoolExecutor(THREADS), deque[Future[Decoded]]()
    try:
        for task in tasks:
            ahead.append(pool.submit(decoder.__getitem__, task))
            if len(ahead) == AHEAD * THREADS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _by_processes(decoder: Decoder, tasks: Iterator[Task], loaders: int) -> Iterator[Decoded]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # the recipe asks for as many
        # A generator of its own: without one, DataLoader would draw its seed from torch's, which decides on dropout.
        batches = iter(DataLoader(decoder, batch_size=None, sampler=_Once(tasks), num_workers=loaders, collate_fn=_unchanged,
                            prefetch_factor=AHEAD, timeout=PATIENCE_S, worker_init_fn=_start,
                            generator=torch.Generator(), multiprocessing_context="fork"))  # fmt: skip
    _explain_deaths()
    processes: list[BaseProcess] = batches._workers  # type: ignore[attr-defined]  # no public way to the exit codes
    end = atexit.register(partial(_end, processes))
    try:
        yield from batches
    except RuntimeError as error:
        dead = [f"pid {each.pid}, {_ending(each.exitcode)}" for each in processes if each.exitcode]
        with _unnoticed():
            for process in processes:
                process.kill()  # at once: they ignore SIGTERM, and one that hangs would be waited for
            batches._shutdown_workers()  # type: ignore[attr-defined]  # torch does it only when the iterator is deleted
        if "DataLoader timed out" in str(error):
            raise LoaderError(
                f"no loader process has given a batch for {PATIENCE_S:g} s; check that the disk of the data version "
                "answers, and start again: the training resumes from its checkpoint"
            ) from None
        if dead:
            raise _dead("; ".join(dead)) from None
        raise
    finally:
        atexit.unregister(end)


def _end(processes: Sequence[BaseProcess]) -> None:
    """Ends loader processes when this one exits with an unhandled error, whose traceback keeps them alive.

    Python would ask them with SIGTERM, which they ignore, and wait for ever.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in processes:
        process.kill()


class _Once:
    """An iterator in the form of a sampler."""

    def __init__(self, tasks: Iterator[Task]) -> None:
        self.tasks = tasks

    def __iter__(self) -> Iterator[Task]:
        return self.tasks


def _unchanged(batch: Any) -> Any:
    return batch


def _start(number: int) -> None:
    """Prepares a loader process: nothing that it inherited is touched, which would copy its memory."""
    gc.freeze()
    for name in (signal.SIGTERM, signal.SIGINT):  # sent to a whole group, they are for the training to handle
        signal.signal(name, signal.SIG_IGN)


def _explain_deaths() -> None:
    """Lets torch's handler, which notices a dead loader process at once, wherever this process is, raise a LoaderError."""
    noticing = signal.getsignal(signal.SIGCHLD)
    if not callable(noticing) or getattr(noticing, "explains", False):
        return

    def handler(number: int, frame: FrameType | None) -> None:
        try:
            noticing(number, frame)
        except RuntimeError as error:
            raise _dead(str(error).strip().removeprefix("DataLoader worker ")) from None

    handler.explains = True  # type: ignore[attr-defined]  # functions may have attributes
    with suppress(ValueError):  # not in the main thread; batches are then missed after PATIENCE_S
        signal.signal(signal.SIGCHLD, handler)


@contextmanager
def _unnoticed() -> Iterator[None]:
    """Context in which processes may be killed without torch's handler taking it for an accident."""
    with suppress(ValueError):  # not in the main thread, which alone handles signals
        noticing = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield
    with suppress(ValueError):
        signal.signal(signal.SIGCHLD, noticing)


def _dead(which: str) -> LoaderError:
    """The error for a loader process that ended by itself, with the likely reason and a way out."""
    killed = "SIGKILL" in which or "Killed" in which
    likely = "the system lacked memory" if killed else "its decoder crashed or someone ended it"
    return LoaderError(
        f"a loader process died ({which}); probably {likely}: lower train.loaders, or give the machine more memory, and "
        "start again: the training resumes from its checkpoint"
    )


def _ending(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"status {status}"
