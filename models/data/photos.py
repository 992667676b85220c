"""Photos of a data version as uint8 batches, decoded by threads and cached in memory if they fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import pixels
from models.data.manifest import Manifest

CACHE_BYTES = 2_000_000_000  # larger sets of decoded photos are not cached, but decoded again in each epoch
THREADS = 2


class Photos:
    """Rows of a manifest as square photos of `side` pixels.

    Args:
        rows: (N,) positions in the manifest; position i here is row rows[i] there.
    """

    def __init__(self, manifest: Manifest, rows: NDArray[np.int64], *, side: int) -> None:
        self.manifest, self.rows, self.side = manifest, rows, side
        self.cache: dict[int, NDArray[np.uint8]] | None = {} if len(rows) * side * side * 3 <= CACHE_BYTES else None

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, order: Sequence[NDArray[np.int64]]) -> Iterator[Tensor]:
        """Batches (n, side, side, 3) uint8, one per array of positions; the next is decoded while one is used."""
        with ThreadPoolExecutor(THREADS) as pool:
            ahead = None
            for positions in order:
                coming = [pool.submit(self._square, int(i)) for i in positions]
                if ahead is not None:
                    yield _stack([future.result() for future in ahead])
                ahead = coming
            if ahead is not None:
                yield _stack([future.result() for future in ahead])

    def in_order(self, batch_size: int, *, part: slice = slice(None)) -> Iterator[Tensor]:
        """Batches of the photos of a part, in order."""
        start, stop, _ = part.indices(len(self))
        return self.batches([np.arange(i, min(i + batch_size, stop)) for i in range(start, stop, batch_size)])

    def _square(self, position: int) -> NDArray[np.uint8]:
        if self.cache is not None and position in self.cache:
            return self.cache[position]
        data = self.manifest.read_photo(int(self.rows[position]))
        square = pixels.to_square(pixels.decode(data, is_accepted=True), self.side)
        if self.cache is not None:
            self.cache[position] = square
        return square


def _stack(squares: Sequence[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack(squares))
