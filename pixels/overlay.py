"""Comparison of two photos in detail: laid over each other, they differ by more than noise somewhere, or nowhere.

It tells copies of a photo (other encodings and sizes, small crops) from photos of products that differ in a colour or in
a few words, on any background: the place that differs most decides, and not the mean.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pixels import decode_shrunk, shrunk

LARGEST, SMALLEST = 192, 16  # px; sides between which photos are compared
REACH = 3  # px; windows have 2 * REACH + 1 px a side
NOISE = 300.0  # sum of the squared grey levels of three colours by which flat areas may differ
SHIFT = 0.05  # share of half a side by which one photo is moved or stretched to fit the other
STEPS = 4


def thumbnail(data: bytes) -> Image.Image:
    """An encoded photo for `difference`: a square at half its shorter side, which averages the noise of an encoder.

    Raises:
        BadPhoto: as for `pixels.decode`.
    """
    image, size = decode_shrunk(data, LARGEST)
    return shrunk(image, max(SMALLEST, min(LARGEST, min(size) // 2)))


def difference(one: Image.Image, other: Image.Image) -> float:
    """The greatest difference of two thumbnails in any window, as a share of the contrast that both have there.

    0 for equal photos, seldom above 0.6 for copies, around 1 where they show different things, more where flat colours differ.
    The inverse of the contrast term of the structural similarity (Wang et al. 2004), with the difference of the means.
    """
    side = min(one.width, other.width)
    one, other = (image if image.width == side else shrunk(image, side) for image in (one, other))
    fixed, moved = (np.asarray(image, np.float32) for image in (one, _moved(other, _fit(one, other))))
    found = _mean(_energy(fixed - moved), REACH) / (_contrast(fixed) + _contrast(moved) + NOISE)
    margin = _margin(side) + REACH
    return float(found[margin:-margin, margin:-margin].max())


def _contrast(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, N, 1) variances in each window, summed over all colours."""
    return _mean(_energy(values), REACH) - _energy(_mean(values, REACH))


def _fit(fixed: Image.Image, image: Image.Image) -> NDArray[np.float64]:
    """(4,) stretch and shift, horizontal and vertical, that lays `image` over `fixed` (Lucas and Kanade 1981).

    In half sides, each at most SHIFT.
    """
    side, wanted = fixed.width, np.zeros(4)
    inner = slice(_margin(side), -_margin(side))  # beyond it lies what `image` may lack
    place = ((np.arange(side) + 0.5) / side * 2 - 1)[inner].astype(np.float32)
    target, grey = np.asarray(_soft(fixed), np.float32), _soft(image)
    for _ in range(STEPS):
        moved = np.asarray(_moved(grey, wanted), np.float32)
        down, right = (np.asarray(slope, np.float32)[inner, inner] * (side / 2) for slope in np.gradient(moved))
        slopes = np.stack([right * place, right, down * place[:, None], down]).reshape(4, -1)
        system = (slopes @ slopes.T).astype(np.float64)
        system[np.diag_indices(4)] += 1e-3 * np.trace(system) / 4 + 1e-9  # a photo of one colour fits anywhere
        wanted += np.linalg.solve(system, slopes @ (target - moved)[inner, inner].ravel())
        wanted = wanted.clip(-SHIFT, SHIFT)
    return wanted


def _soft(image: Image.Image) -> Image.Image:
    return image.convert("L").filter(ImageFilter.BoxBlur(1))


def _moved(image: Image.Image, wanted: NDArray[np.float64]) -> Image.Image:
    stretch_x, shift_x, stretch_y, shift_y = wanted.tolist()
    half = image.width / 2
    matrix = (1 + stretch_x, 0, half * (shift_x - stretch_x), 0, 1 + stretch_y, half * (shift_y - stretch_y))
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def _margin(side: int) -> int:
    """Border in px in which the photos are not compared, since one may be a crop of the other."""
    return round(SHIFT * side) + 1


def _energy(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, N, 1) sums of the squares of all colours."""
    return np.einsum("xyc,xyc->xy", values, values)[..., None]


def _mean(values: NDArray[np.float32], reach: int) -> NDArray[np.float32]:
    """(N, N, C) means over windows of 2 * reach + 1 px a side; borders are repeated."""
    size = 2 * reach + 1
    for _ in range(2):  # down, then across
        sums = np.cumsum(np.pad(values, ((reach + 1, reach), (0, 0), (0, 0)), "edge"), 0, dtype=np.float64)
        values = ((sums[size:] - sums[:-size]) / size).astype(np.float32).swapaxes(0, 1)
    return values
