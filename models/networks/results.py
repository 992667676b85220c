"""Results of batches, written into an array that was made beforehand.

A small result that is kept between the large buffers of its batch and of the next splits the heap: the space of the
buffers is not found again, and a process grows by a buffer for every batch.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def collect(parts: Iterable[Tensor], out: Tensor) -> Tensor:
    """`out` (N, ...), filled with the rows of all parts, in order; they are N in total, on any device."""
    done = 0
    for part in parts:
        out[done : done + len(part)] = part
        done += len(part)
    return out
