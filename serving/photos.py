"""Photos as a caller has them, and as a graph wants them."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixels import BadPhoto, decode, to_square, upright

Photo = str | os.PathLike[str] | bytes | NDArray[np.uint8] | Image.Image
# A picture that Pillow opened reads its file when it is first looked at, and two threads may look at the same one.
PILLOW = threading.Lock()


def square(photo: Photo, *, number: int, size: int) -> NDArray[np.uint8]:
    """(size, size, 3) uint8 RGB of a path, the bytes of a file, an (H, W, 3) uint8 RGB array or a Pillow image.

    Raises:
        BadPhoto: names the photo by its path, or else by its number, and says why.
    """
    try:
        return to_square(_image(photo), size)
    except (BadPhoto, OSError, ValueError) as error:  # ValueError: a path with a zero byte
        name = os.fsdecode(photo) if isinstance(photo, str | os.PathLike) else f"photo {number}"
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise BadPhoto(f"{name}: {reason}; leave it out or replace it") from None


def _image(photo: Any) -> Image.Image:
    """8-bit RGB of any size."""
    if isinstance(photo, bytes | bytearray | memoryview):
        return decode(bytes(photo))
    if isinstance(photo, str | os.PathLike):
        return decode(Path(os.fsdecode(photo)).read_bytes())
    if isinstance(photo, Image.Image):
        with PILLOW:
            return upright(photo)
    if not isinstance(photo, np.ndarray):
        raise BadPhoto(f"a {type(photo).__name__} is no photo; want a path, bytes, a uint8 array or a Pillow image")
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or not photo.size:
        raise BadPhoto(f"the array is {photo.dtype} {photo.shape}, want uint8 (height, width, 3), RGB")
    return upright(Image.fromarray(np.ascontiguousarray(photo)))
