"""Rows of decoded photos in memory that this process and its loader processes share.

The memory is anonymous, inherited by processes started afterwards. It is neither a file nor in /dev/shm, of which Docker
gives 64 MB: four batches of 128 photos of 224 px. Pages take memory when they are first written.
"""

from __future__ import annotations

import math
import mmap
import weakref

import numpy as np
from numpy.typing import NDArray

from models.data import machine

SHARE = 0.5  # of the memory that this training may still take, for decoded photos that are kept

_alive = weakref.WeakSet["Kept"]()


class Rows:
    """Rows for decoded photos: `pixels` (num, side, side, 3) uint8."""

    def __init__(self, num: int, *, side: int) -> None:
        shape = (num, side, side, 3)
        self.memory = mmap.mmap(-1, max(math.prod(shape), 1))
        self.pixels: NDArray[np.uint8] = np.frombuffer(self.memory, np.uint8, math.prod(shape)).reshape(shape)

    def __len__(self) -> int:
        return len(self.pixels)


class Kept(Rows):
    """Rows in which the first photos of a set stay; row i belongs to photo i, and `filled` (num,) says if it is decoded.

    There are as many as half of the memory that is available now holds.
    """

    def __init__(self, num_photos: int, *, side: int) -> None:
        free = machine.available_bytes() - sum(each.missing_bytes for each in _alive)  # nothing is given twice
        most = int(SHARE * max(free, 0)) // machine.sharing()
        super().__init__(min(num_photos, most // (side * side * 3)), side=side)
        self.filled = np.zeros(len(self), np.bool_)
        _alive.add(self)

    @property
    def missing_bytes(self) -> int:
        """Memory that the rest of the photos will take."""
        return (len(self) - int(self.filled.sum())) * math.prod(self.pixels.shape[1:])

    def has(self, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) True for each position whose photo is kept and decoded."""
        found = positions < len(self)
        found[found] = self.filled[positions[found]]
        return found
