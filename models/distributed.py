"""Exchange between the workers of a training, which `torchrun --nproc_per_node N -m models.training.train ...` starts.

Without torchrun there is one worker. Each worker takes its part of every batch. torch's data parallel sums the gradients
(models.training.parallel); this module exchanges what torch does not know: values per photo, which are gathered in the
order of the photos, so the result does not depend on the number of workers. All workers must call the functions that
exchange data, in the same order. Gathered values travel on the CPU, by gloo.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch
from torch import Tensor, distributed, nn

from models.errors import ModelError, WorkerLost

# How long an answer may take. A machine that lost its power or its network sends nothing, not even the end of a stream.
PATIENCE = timedelta(seconds=40)
BEAT_S = 2.0  # between two heartbeats
END = sys.maxsize  # number of the last barrier
FAILED = -1  # number of a worker that ends with an error

_heartbeat: Heartbeat | None = None


@contextmanager
def workers() -> Iterator[None]:
    """Context in which the workers started by torchrun are connected: by nccl for tensors on GPUs, by gloo for others.

    An error of one worker ends all of them, with the same message; otherwise that of the last to end, which reads that another
    one was lost, would hide it.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    global _heartbeat
    _heartbeat = heartbeat = Heartbeat()
    try:
        yield
        heartbeat.barrier(END)
    except Exception as error:
        if _is_of_exchange(error):
            raise heartbeat.reason() from error
        heartbeat.tell(error)
        raise
    finally:
        _heartbeat = None
        heartbeat.end()
        distributed.destroy_process_group()


class Heartbeat:
    """A thread that exchanges a number with those of the other workers every BEAT_S.

    So a lost worker is noticed after PATIENCE, however long a pass over photos still takes, and a slow one is not taken for
    lost. The number is that of the last barrier this worker has reached; every worker has reached the least of them. If that
    is FAILED, the error follows.
    """

    def __init__(self) -> None:
        group = distributed.new_group(backend="gloo", timeout=PATIENCE)
        assert not isinstance(group, int)  # it would be if this worker were not in it
        self.group = group
        self.reached = self.passed = 0
        self.is_over = False
        self.own: ModelError | None = None  # with which this worker ends
        self.error: Exception | None = None  # of the exchange, or of a worker
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._exchange, name="heartbeat", daemon=True)
        self.thread.start()

    def _exchange(self) -> None:
        try:
            while self.passed < END:
                with self.changed:
                    self.changed.wait_for(lambda: self.is_over or self.own or self.reached > self.passed, BEAT_S)
                    if self.is_over:
                        return
                    own, number = self.own, torch.tensor(FAILED if self.own else self.reached)
                distributed.all_reduce(number, distributed.ReduceOp.MIN, self.group)
                if int(number) == FAILED:
                    raise self._told(own)
                with self.changed:
                    self.passed = int(number)
                    self.changed.notify_all()
        except Exception as error:
            with self.changed:
                self.error = error
                self.changed.notify_all()

    def _told(self, own: ModelError | None) -> ModelError:
        """The error of the first worker that has one; all exchange theirs."""
        errors: list[ModelError | None] = [None] * world()
        distributed.all_gather_object(errors, own, self.group)
        return next(error for error in errors if error is not None)

    def tell(self, error: Exception) -> None:
        """Ends the other workers with this error, unless they already end. Waits until they know it."""
        with self.changed:
            self.own = error if isinstance(error, ModelError) else _lost(f"{type(error).__name__}: {error}")
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.error is not None or not self.thread.is_alive())

    def reason(self) -> Exception:
        """Error for an exchange that failed: that of the worker that ended, if it told it."""
        with self.changed:
            self.changed.wait_for(lambda: self.error is not None, BEAT_S)
        return self.error if isinstance(self.error, ModelError) else _lost()

    def barrier(self, number: int = 0) -> None:
        """Waits until all workers have reached this barrier: the next one, or the one with this number.

        Raises:
            WorkerLost: one ended or is silent, and this is not the last barrier, at which all work is done.
            ModelError: one ended with this error.
        """
        with self.changed:
            self.reached = number = number or self.reached + 1
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.error is not None or self.passed >= number)
        if number < END:
            self.check()

    def check(self) -> None:
        """Raises WorkerLost if a worker ended or is silent, or the error with which it ended."""
        if isinstance(self.error, ModelError):
            raise self.error
        if self.error is not None:
            raise _lost() from self.error

    def end(self) -> None:
        """Ends the thread, at the latest after PATIENCE."""
        with self.changed:
            self.is_over = True
            self.changed.notify_all()
        self.thread.join()


def _is_of_exchange(error: Exception) -> bool:
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


def _lost(why: str = "") -> WorkerLost:
    """Error for a worker that ended; why: the error that it told."""
    what = f"ended ({why})" if why else "ended, or its machine no longer answers"
    return WorkerLost(f"another worker {what}; run the same command again: a training continues from its checkpoint")


def barrier() -> None:
    """Waits until all workers have reached this point, however much longer one takes than another.

    Raises:
        WorkerLost: one ended or is silent.
    """
    if _heartbeat is not None:
        _heartbeat.barrier()


def check() -> None:
    """Raises WorkerLost if a worker ended or is silent. Long passes call this with every batch."""
    if _heartbeat is not None:
        _heartbeat.check()


def rank() -> int:
    """Number of this worker, from 0; only worker 0 writes files and logs."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """Number of workers."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def part(length: int) -> slice:
    """This worker's part of `length` items. Parts are contiguous, nearly equal, and in the order of the ranks."""
    size, longer = divmod(length, world())
    start = rank() * size + min(rank(), longer)
    return slice(start, start + size + (rank() < longer))


def concat(rows: Tensor) -> Tensor:
    """Rows (n, ...) of all workers, concatenated in the order of the ranks, on all workers; n may differ."""
    if world() == 1:
        return rows
    barrier()
    length = torch.tensor([len(rows)])
    lengths = [torch.zeros_like(length) for _ in range(world())]
    distributed.all_gather(lengths, length)
    width = rows[:1].numel() if len(rows) else int(np.prod(rows.shape[1:]))
    size = max(int(length) for length in lengths) * width * rows.element_size()
    ours = torch.zeros(size, dtype=torch.uint8)  # bytes, as not every dtype can be sent
    flat = rows.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    ours[: len(flat)] = flat
    theirs = [torch.empty_like(ours) for _ in lengths]
    distributed.all_gather(theirs, ours)
    sent = [each[: int(n) * width * rows.element_size()] for each, n in zip(theirs, lengths, strict=True)]
    shape = (sum(int(length) for length in lengths), *rows.shape[1:])
    return torch.cat(sent).view(rows.dtype).reshape(shape).to(rows.device)


def gather(index: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of all workers, on all workers, sorted by index and then by value: the same for any number of workers.

    Args:
        index: (n,) integers; n may differ between workers, and an index may occur several times.
        value: (n,) or (n, k) of any dtype; rows of k columns are compared from the first column on.
    """
    index, value = concat(index), concat(value)
    order = torch.arange(len(index), device=index.device)
    columns = value.reshape(len(index), -1) if len(index) else value.reshape(0, 1)
    for key in (*columns.flip(1).unbind(1), index):  # stable sorts, from the least to the most important
        order = order[key[order].argsort(stable=True)]
    return index[order], value[order]


def total(value: float) -> float:
    """Sum over the workers, in float64."""
    shared = torch.tensor([value], dtype=torch.float64)
    return float(concat(shared).sum())


def summed(value: Tensor) -> Tensor:
    """Sum over the workers of tensors of one shape."""
    if world() == 1:
        return value
    shared = value.detach().clone()
    distributed.all_reduce(shared)
    return shared


def any_of(*answers: bool) -> tuple[bool, ...]:
    """True for each question that at least one of the workers answers with yes."""
    if world() == 1:
        return answers
    shared = torch.tensor(answers, dtype=torch.int32)
    distributed.all_reduce(shared, distributed.ReduceOp.MAX)
    return tuple(map(bool, shared.tolist()))


def average_buffers(module: nn.Module) -> None:
    """Averages the running statistics of all workers. Running means are linear, so any moment gives the same result.

    torch's data parallel would take those of the first worker, which has seen only its part of the photos.
    """
    for buffer in module.buffers() if world() > 1 else ():
        if buffer.is_floating_point():
            distributed.all_reduce(buffer)
            buffer /= world()
