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
    """Photos (n, side, side, 3) uint8, and their positions (n,), which differ from those asked for after a fault."""

    photos: Tensor
    positions: NDArray[np.int64]


class Carrier(Protocol):
    """A way of tensors to a device."""

    def send(self, photos: Tensor) -> Callable[[], Tensor]:
        """Starts to copy photos; the result is called when the device needs them, and gives the copy."""


class Cuda:
    """Copies from pinned memory to a GPU. Nothing here waits: the GPU's present stream does, for the copy.

    Unmeasured: written without a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def send(self, photos: Tensor) -> Callable[[], Tensor]:
        """Starts to copy photos, which are in pinned memory."""
        with torch.cuda.stream(self.stream):
            copy = photos.to(self.device, non_blocking=True)
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
        yield from batches
        return
    ahead: tuple[Callable[[], Tensor], NDArray[np.int64]] | None = None
    for photos, positions in batches:
        coming = carrier.send(photos), positions
        if ahead is not None:
            yield Batch(ahead[0](), ahead[1])
        ahead = coming
    if ahead is not None:
        yield Batch(ahead[0](), ahead[1])


def carrier_to(device: torch.device) -> Carrier | None:
    """The carrier to a device; None for the CPU."""
    return Cuda(device) if device.type == "cuda" else None
