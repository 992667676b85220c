"""Batches on their way to the device: copied one ahead, on a stream of their own, while the device computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CPU = torch.device("cpu")


class Batch(NamedTuple):
    """Photos (n, side, side, 3) uint8, and their positions (n,), which differ from those asked for after a fault.

    finish: fills in what is still missing in the photos on their device, and in the positions; None: nothing is.
    """

    photos: Tensor
    positions: NDArray[np.int64]
    finish: Callable[[Tensor], None] | None = None


class Carrier(Protocol):
    """A way of tensors to a device."""

    def send(self, batch: Batch) -> Callable[[], Tensor]:
        """Starts to copy photos, and finishes them; the result is called when the device needs them, and gives the copy."""


class Cuda:
    """Copies from pinned memory to a GPU. The GPU's present stream waits for the copy, the host for unfinished photos alone.

    Unmeasured: written without a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def send(self, batch: Batch) -> Callable[[], Tensor]:
        """Starts to copy photos, which are in pinned memory, and finishes them."""
        with torch.cuda.stream(self.stream):
            copy = batch.photos.to(self.device, non_blocking=True)
            if batch.finish:
                self.stream.synchronize()  # nvJPEG writes on a stream of its own, into memory that this one has given away
                batch.finish(copy)
        copied = self.stream.record_event()

        def received() -> Tensor:
            present = torch.cuda.current_stream(self.device)
            present.wait_event(copied)
            copy.record_stream(present)  # its memory is not given away before the present stream has used it
            return copy

        return received


def carried(batches: Iterator[Batch], carrier: Carrier | None) -> Iterator[Batch]:
    """Batches on the carrier's device, the next one always under way; without a carrier as they are."""
    if carrier is None:
        for batch in batches:
            if batch.finish:
                batch.finish(batch.photos)
            yield batch
        return
    ahead: tuple[Callable[[], Tensor], NDArray[np.int64]] | None = None
    for batch in batches:
        coming = carrier.send(batch), batch.positions
        if ahead is not None:
            yield Batch(ahead[0](), ahead[1])
        ahead = coming
    if ahead is not None:
        yield Batch(ahead[0](), ahead[1])


def carrier_to(device: torch.device) -> Carrier | None:
    """The carrier to a device; None for the CPU."""
    return Cuda(device) if device.type == "cuda" else None
