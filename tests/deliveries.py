"""Small deliveries of real pictures for tests."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def photo(seed: int, *, side: int = 8, kind: str = "PNG") -> bytes:
    """Encoded picture of random pixels; the same seed gives the same bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def deliver(folder: Path, counts: dict[str, int], *, first_seed: int = 0, side: int = 8) -> Path:
    """Writes a folder per class, with the given number of different photos, and returns `folder`."""
    seed = first_seed
    for label, number in counts.items():
        (folder / label).mkdir(parents=True, exist_ok=True)
        for _ in range(number):
            (folder / label / f"photo {seed}.png").write_bytes(photo(seed, side=side))
            seed += 1
    return folder
