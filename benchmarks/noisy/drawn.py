"""Shapes drawn in a second: the data of the benchmark without --data, and of its tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from noisy.photos import SIDE, PhotoSet

Grid = NDArray[np.float64]

SHAPES: dict[str, Callable[[Grid, Grid], NDArray[np.bool_]]] = {
    "disc": lambda x, y: np.hypot(x, y) < 0.9,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.75) < 0.2,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.75,
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) < 0.25) & (np.maximum(abs(x), abs(y)) < 0.95),
    "triangle": lambda x, y: (y > -0.6) & (y < 1 - 1.8 * abs(x)),
    "bars": lambda x, y: (np.abs(abs(x) - 0.5) < 0.22) & (abs(y) < 0.9),
}


def drawn_set(*, num_train: int = 2400, num_test: int = 600, seed: int = 0) -> PhotoSet:
    """Six shapes of any colour, leaning a little, under noise; equally many photos of each."""
    draw = np.random.RandomState(seed)
    label, test_label = (np.arange(count) % len(SHAPES) for count in (num_train, num_test))
    return PhotoSet(name="drawn shapes", classes=tuple(SHAPES), photos=_photos(label, draw), label=label,
                    test_photos=_photos(test_label, draw), test_label=test_label)  # fmt: skip


def _photos(label: NDArray[np.int64], draw: np.random.RandomState) -> NDArray[np.uint8]:
    return np.stack([_photo(list(SHAPES.values())[k], draw) for k in label])


def _photo(shape: Callable[[Grid, Grid], NDArray[np.bool_]], draw: np.random.RandomState) -> NDArray[np.uint8]:
    radius, angle = draw.uniform(9, 13), draw.uniform(-0.4, 0.4)
    rows, columns = np.mgrid[:SIDE, :SIDE] - SIDE / 2 - draw.uniform(-3, 3, size=(2, 1, 1))
    x = (np.cos(angle) * columns + np.sin(angle) * rows) / radius
    y = (np.cos(angle) * rows - np.sin(angle) * columns) / radius
    back = draw.uniform(0, 255, size=3)
    front = (back + draw.uniform(70, 186)) % 256  # never close to the background
    photo = np.where(shape(x, y)[..., None], front, back) + draw.normal(0, 25, size=(SIDE, SIDE, 3))
    return photo.clip(0, 255).astype(np.uint8)
