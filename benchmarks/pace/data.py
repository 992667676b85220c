"""Drawn photos, as a data version with shards and as a folder per class."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flows.data.shards import pack
from models.data.manifest import write_table

DETAIL = ((6, 60.0), (40, 25.0), (160, 12.0))  # cells across a photo, and standard deviation of their brightness
QUALITY = 88  # of JPEG: 50 to 60 kB at 500 px, as shops deliver


def drawn_jpeg(seed: int, *, width: int = 500, height: int = 400) -> bytes:
    """JPEG of random colours in coarse, middle and fine detail; as slow to decode as a photo of its size in bytes."""
    random = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 128.0)
    for cells, spread in DETAIL:
        coarse = np.clip(random.normal(128, spread, (cells, cells, 3)), 0, 255).astype(np.uint8)
        resized = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        pixels += np.asarray(resized, np.float32) - 128
    return encoded(np.clip(pixels, 0, 255).astype(np.uint8), kind="JPEG", quality=QUALITY)


def encoded(pixels: NDArray[np.uint8], *, kind: str, **options: int) -> bytes:
    """A picture (H, W, 3) as a file of this kind."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def write_data(
    folder: Path, photos: Sequence[bytes], labels: Sequence[str], splits: Sequence[str], *, given: Sequence[str] = ()
) -> Path:
    """Writes a data version with one row per label; returns its folder.

    Each photo is stored once. Row i shows photo i, counted round: a version of a million rows takes a few megabytes, and
    still every row is read and decoded by itself.

    Args:
        given: given labels where they differ from `labels`.
    """
    packed = pack(((f"{i:020x}", photo) for i, photo in enumerate(photos)), folder=folder / "shards")
    num_rows = len(labels)
    at, ids = np.arange(num_rows) % len(photos), [f"{row:020x}" for row in range(num_rows)]
    sizes = dict.fromkeys(("width", "height"), np.zeros(num_rows, np.int32))
    shards = np.array(list(packed.shards), object)[packed.shard[at]]
    index = {"id": ids, "sha256": ids, "shard": shards, "offset": packed.offset[at], "size": packed.size[at], **sizes}
    write_table(folder, index | dict.fromkeys(("source", "path"), ids), name="index")
    texts = dict.fromkeys(("decision", "scored_by"), [""] * num_rows)
    numbers = {"kept": [True] * num_rows, "score": [None] * num_rows, "round": np.zeros(num_rows, np.int8)}
    names = {"id": ids, "given_label": list(given or labels), "label": list(labels), "split": list(splits)}
    write_table(folder, names | numbers | texts, name="labels")
    return folder


def write_folder(folder: Path, photos: Sequence[bytes], labels: Sequence[str]) -> Path:
    """Writes the rows of `write_data` as a folder per class; returns `folder`. Rows with the same photo are hard links."""
    for row, label in enumerate(labels):
        file, first = folder / label / f"{row}.jpg", folder / f"{row % len(photos)}.bytes"
        file.parent.mkdir(parents=True, exist_ok=True)
        if not first.exists():
            first.write_bytes(photos[row % len(photos)])
        os.link(first, file)
    return folder
