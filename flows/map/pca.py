"""Principal components, from sums over blocks of vectors: memory does not grow with the number of photos."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Projection:
    """Linear map to the first K principal components; mean: (d,) float32, axes: (d, K) float32, orthonormal columns."""

    mean: NDArray[np.float32]
    axes: NDArray[np.float32]

    def of(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, K) components of vectors (n, d)."""
        return np.asarray((block - self.mean) @ self.axes, np.float32)


def principal_components(blocks: Iterable[NDArray[np.float32]], *, most: int) -> Projection:
    """The `most` components with the largest variance, or d if that is less; rows with NaN do not count.

    The sign of each axis is such that its largest coordinate is positive.
    """
    count, shift, total, products = 0, np.zeros(0, np.float32), np.zeros(0), np.zeros((0, 0))
    for block in blocks:
        usable = block[~np.isnan(block[:, 0])]
        if not count:  # sums of what differs from a mean keep their digits
            shift = usable.mean(axis=0) if len(usable) else np.zeros(block.shape[1], np.float32)
            total, products = np.zeros(len(shift)), np.zeros((len(shift), len(shift)))
        usable = usable - shift
        count += len(usable)
        total += usable.sum(axis=0, dtype=np.float64)
        products += usable.T @ usable
    mean = total / max(count, 1)
    _, axes = np.linalg.eigh(products / max(count, 1) - np.outer(mean, mean))
    axes = axes[:, ::-1][:, :most]
    if axes.size:
        axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    return Projection((shift + mean).astype(np.float32), axes.astype(np.float32))
