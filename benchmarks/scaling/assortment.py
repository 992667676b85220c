"""A drawn assortment of any size as a delivery: tiny photos that can be learnt, a long tail, wrong labels, near-duplicates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from numpy.typing import NDArray

SIDE, CELLS = 24, 6  # px, and coloured cells across a photo
WRONG, NEAR = 0.08, 0.02  # shares of photos with a wrong label, and of photos that repeat another one a little brighter
TAIL = 0.7  # a class of rank r gets photos in proportion to r^-TAIL, and at least one
CHUNK = 4096  # photos that are drawn at a time
JITTER = 40  # largest change of a cell's colour within a class
FOLDER = 1000  # photos in a folder
NOISE = np.float32(12)  # standard deviation of a sample value


def deliver(folder: Path, *, classes: int, photos: int, seed: int = 0) -> Path:
    """Writes the photos of an assortment and manifest.parquet below `folder`; the same arguments draw the same photos.

    Column `true` of truth.parquet is the class that a photo shows; half of the wrong labels name a similar product.
    """
    random = np.random.default_rng(seed)
    true = _classes(classes, photos, random)
    original = np.arange(photos)
    copies = random.choice(photos, int(NEAR * photos), replace=False)
    original[copies] = np.minimum(copies // CHUNK * CHUNK + random.integers(0, CHUNK, len(copies)), photos - 1)
    true = true[original]
    given = true.copy()
    wrong = random.random(photos) < WRONG
    other = np.where(random.random(photos) < 0.5, true ^ 1, random.integers(0, classes, photos)) % classes
    given[wrong] = other[wrong]
    paths = [f"{number // FOLDER:05d}/{number:08d}.jpg" for number in range(photos)]
    for number in range(-(-photos // FOLDER)):
        (folder / f"{number:05d}").mkdir(parents=True, exist_ok=True)
    for start, jpegs in _photos(true, original, classes, seed):
        for number, jpeg in enumerate(jpegs, start):
            (folder / paths[number]).write_bytes(jpeg)
    columns = {"path": pa.array(paths), "label": _texts(given, classes)}
    pq.write_table(pa.table(columns), folder / "manifest.parquet")
    pq.write_table(pa.table(columns | {"true": _texts(true, classes)}), folder.with_suffix(".truth.parquet"))
    return folder


def name_of(number: int) -> str:
    """Label of a class."""
    return f"Product {number:06d}"


def _classes(classes: int, photos: int, random: np.random.Generator) -> NDArray[np.int64]:
    share = np.arange(1, classes + 1) ** -TAIL
    sizes = 1 + random.multinomial(photos - classes, share / share.sum())
    return random.permutation(np.repeat(random.permutation(classes), sizes))


def _photos(
    true: NDArray[np.int64], original: NDArray[np.int64], classes: int, seed: int
) -> Iterator[tuple[int, list[bytes]]]:
    """Position of the first photo of each chunk, and the JPEGs of the chunk. Classes 2k and 2k + 1 share most cells."""
    random = np.random.default_rng(seed + 1)
    cells = random.integers(0, 256, (classes, CELLS, CELLS, 3), dtype=np.uint8)
    odd = cells[1::2]
    odd[:, 2:] = cells[0::2][: len(odd), 2:]
    for start in range(0, len(true), CHUNK):
        shown = original[start : start + CHUNK]
        noise = random.standard_normal((len(shown), SIDE, SIDE, 3), np.float32)[shown - start]
        light = random.uniform(0.7, 1.3, len(shown))[shown - start]
        light *= np.where(shown == np.arange(start, start + len(shown)), 1, 1.02)
        own = random.integers(-JITTER, JITTER, (len(shown), CELLS, CELLS, 3), np.int16)[shown - start]
        large = (cells[true[start : start + CHUNK]] + own).repeat(SIDE // CELLS, 1).repeat(SIDE // CELLS, 2)
        pixels = np.clip(large * light[:, None, None, None].astype(np.float32) + NOISE * noise, 0, 255).astype(np.uint8)
        yield start, [simplejpeg.encode_jpeg(each, quality=90) for each in pixels]


def _texts(codes: NDArray[np.int64], classes: int) -> pa.Array:
    names = pa.array([name_of(number) for number in range(classes)])
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), names).cast(pa.string())
