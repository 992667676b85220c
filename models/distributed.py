"""Exchange between the workers of a training, which `torchrun --nproc_per_node N -m models.training.train ...` starts.

Without torchrun there is one worker.
Each worker takes its part of every batch. Gradients are summed, and values per photo are gathered in the order of the
samples, so the result does not depend on the number of workers. All workers must call the functions that exchange data,
in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch
from torch import Tensor, distributed, nn

from models.errors import WorkerLost

PATIENCE = timedelta(
    seconds=40
)  # a machine that lost its power or its network sends nothing, not even the end of a stream


@contextmanager
def workers() -> Iterator[None]:
    """Context in which the workers started by torchrun are connected: by nccl on GPUs, by gloo on CPUs."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or "/gloo/" in str(error):
            raise WorkerLost("another worker of this training ended, or its machine no longer answers; "
                             "start the training again, and it continues from its checkpoint") from error  # fmt: skip
        raise
    finally:
        distributed.destroy_process_group()


def rank() -> int:
    """Number of this worker, from 0; only worker 0 writes files and logs."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """Number of workers."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def part(length: int) -> slice:
    """This worker's part of `length` items. Parts are contiguous, nearly equal, and in the order of the ranks."""
    bounds = np.cumsum([0] + [len(each) for each in np.array_split(np.empty(length), world())])
    return slice(int(bounds[rank()]), int(bounds[rank() + 1]))


def concat(rows: Tensor) -> Tensor:
    """Rows (n, ...) of all workers, concatenated in the order of the ranks, on all workers; n may differ."""
    if world() == 1:
        return rows
    lengths = [torch.zeros(1, dtype=torch.int64, device=_exchange_device()) for _ in range(world())]
    distributed.all_gather(lengths, torch.tensor([len(rows)], device=_exchange_device()))
    width = rows[:1].numel() if len(rows) else int(np.prod(rows.shape[1:]))
    size = max(int(length) for length in lengths) * width * rows.element_size()
    ours = torch.zeros(size, dtype=torch.uint8, device=_exchange_device())  # bytes, as not every dtype can be sent
    flat = rows.detach().contiguous().reshape(-1).view(torch.uint8)
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
    shared = value.detach().to(_exchange_device(), copy=True)
    distributed.all_reduce(shared)
    return shared.to(value.device)


def agree(answer: bool) -> bool:
    """Answer of the first worker, on all workers."""
    if world() == 1:
        return answer
    shared = torch.tensor([int(answer)], device=_exchange_device())
    distributed.broadcast(shared, src=0)
    return bool(shared)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sums the gradients of all workers.

    A worker whose part of the batch was empty has none and receives those of the others. A parameter that has no gradient
    on any worker keeps none, so that the optimiser skips it.
    """
    if world() == 1:
        return
    params = list(parameters)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
    present = torch.tensor([float(p.grad is not None) for p in params], device=_exchange_device())
    shared = torch.cat([*(grad.float().reshape(-1).to(present.device) for grad in grads), present])
    distributed.all_reduce(shared)
    *sums, num_present = shared.split([*(p.numel() for p in params), len(params)])
    for p, grad, count in zip(params, sums, num_present.tolist(), strict=True):
        p.grad = grad.view_as(p).to(p) if count else None


def average_buffers(module: nn.Module) -> None:
    """Averages the running statistics of all workers. Running means are linear, so any moment gives the same result."""
    for buffer in module.buffers() if world() > 1 else ():
        if buffer.is_floating_point():
            shared = buffer.to(_exchange_device())
            distributed.all_reduce(shared)
            buffer.copy_(shared / world())


def _exchange_device() -> torch.device:
    """Device on which tensors must be to be exchanged."""
    return torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")
