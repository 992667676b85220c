"""One training by several workers: `torchrun --nproc_per_node N -m models.training.train ...`; without torchrun, one worker alone.

Each worker takes its part of every batch. What they learn is summed, what they see is gathered in the order of the samples,
so that neither depends on how many they are. Every worker must call the functions that exchange something, in one order.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, distributed, nn


@contextmanager
def workers() -> Iterator[None]:
    """Meets the other workers that torchrun started, and leaves them at the end: nccl on GPUs, gloo on CPUs."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def rank() -> int:
    """Which worker this is, from 0; the first alone writes files and logs."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """How many workers there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def part(length: int) -> slice:
    """This worker's part of `length` things; the parts are as even as it goes, contiguous and in the order of the ranks."""
    bounds = np.cumsum([0] + [len(each) for each in np.array_split(np.empty(length), world())])
    return slice(int(bounds[rank()]), int(bounds[rank() + 1]))


def concat(rows: Tensor) -> Tensor:
    """(n, ...) of each worker, n may differ, to (sum of n, ...) in the order of the ranks, for all of them."""
    if world() == 1:
        return rows
    lengths = [torch.zeros(1, dtype=torch.int64, device=_meeting_place()) for _ in range(world())]
    distributed.all_gather(lengths, torch.tensor([len(rows)], device=_meeting_place()))
    width = rows[:1].numel() if len(rows) else int(np.prod(rows.shape[1:]))
    size = max(int(length) for length in lengths) * width * rows.element_size()
    ours = torch.zeros(size, dtype=torch.uint8, device=_meeting_place())  # bytes, as not every dtype travels
    flat = rows.detach().contiguous().reshape(-1).view(torch.uint8)
    ours[: len(flat)] = flat
    theirs = [torch.empty_like(ours) for _ in lengths]
    distributed.all_gather(theirs, ours)
    sent = [each[: int(n) * width * rows.element_size()] for each, n in zip(theirs, lengths, strict=True)]
    shape = (sum(int(length) for length in lengths), *rows.shape[1:])
    return torch.cat(sent).view(rows.dtype).reshape(shape).to(rows.device)


def gather(index: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """All workers' pairs, for all of them, sorted by index and then by value: the same however many workers there are.

    Args:
        index: (n,) whole numbers; n may differ between workers, and an index may occur often.
        value: (n,) or (n, k) of any dtype; rows of k are compared from the first column on.
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
    shared = value.detach().to(_meeting_place(), copy=True)
    distributed.all_reduce(shared)
    return shared.to(value.device)


def agree(answer: bool) -> bool:
    """The first worker's answer."""
    if world() == 1:
        return answer
    shared = torch.tensor([int(answer)], device=_meeting_place())
    distributed.broadcast(shared, src=0)
    return bool(shared)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Adds up the workers' gradients; a worker whose part of the batch was empty has none, and receives the others'.

    A parameter without a gradient on every worker stays without, as the optimiser passes over it.
    """
    if world() == 1:
        return
    trainable_parameters = list(parameters)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trainable_parameters]
    present = torch.tensor([float(p.grad is not None) for p in trainable_parameters], device=_meeting_place())
    shared = torch.cat([*(grad.float().reshape(-1).to(present.device) for grad in grads), present])
    distributed.all_reduce(shared)
    sums = shared[: len(shared) - len(trainable_parameters)].split([p.numel() for p in trainable_parameters])
    for p, grad, found in zip(
        trainable_parameters, sums, shared[len(shared) - len(trainable_parameters) :].tolist(), strict=True
    ):
        p.grad = grad.view_as(p).to(p) if found else None


def average_buffers(module: nn.Module) -> None:
    """Running statistics that each worker took on its part become their mean. Running means are linear, so the moment is free."""
    for buffer in module.buffers() if world() > 1 else ():
        if buffer.is_floating_point():
            shared = buffer.to(_meeting_place())
            distributed.all_reduce(shared)
            buffer.copy_(shared / world())


def _meeting_place() -> torch.device:
    """Where tensors must lie to be exchanged."""
    return torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")
