"""Fingerprint of a photo: a few bytes by which it is recognised in another encoding or size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixels import decode_shrunk, shrunk

SIDE = 6
BYTES = 3 * SIDE * SIDE


def fingerprint(image: Image.Image) -> NDArray[np.uint8]:
    """(BYTES,) mean colours of SIDE x SIDE equal parts of an RGB photo, 0 to 255.

    Keeps colours instead of brightness differences, as a difference hash does: packshots on white differ in little
    else.
    """
    return np.asarray(shrunk(image, SIDE), dtype=np.uint8).reshape(-1)


def read_fingerprint(data: bytes) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Fingerprint of an encoded photo, and its width and height in px.

    Raises:
        BadPhoto: as for `pixels.decode`.
    """
    image, size = decode_shrunk(data, SIDE)
    return fingerprint(image), size
