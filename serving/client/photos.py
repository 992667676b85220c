"""Photos as a caller has them, and as a graph wants them."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
    with _faults_named(photo, number):
        return to_square(_image(photo), size)


def encoded(photo: Photo, *, number: int, size: int) -> bytes:
    """A file of the photo: its own where there is one, else one that loses nothing of what `square` gives.

    Raises:
        BadPhoto: as `square`; but what a file holds is not looked at.
    """
    with _faults_named(photo, number):
        if (own := _bytes(photo)) is not None:
            return own
        file = io.BytesIO()
        Image.fromarray(to_square(_image(photo), size)).save(file, "PNG", compress_level=1)
        return file.getvalue()


def bad_photo(photo: Photo, number: int, reason: str) -> BadPhoto:
    """A BadPhoto whose message names the photo, by its path or else by its number."""
    name = os.fsdecode(photo) if isinstance(photo, str | os.PathLike) else f"photo {number}"
    return BadPhoto(f"{name}: {reason}; leave it out or replace it", reason=reason)


@contextmanager
def _faults_named(photo: Photo, number: int) -> Iterator[None]:
    """Turns every fault of a photo into a BadPhoto that names it."""
    try:
        yield
    except (BadPhoto, OSError, ValueError) as error:  # ValueError: a path with a zero byte
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise bad_photo(photo, number, reason) from None


def _bytes(photo: Any) -> bytes | None:
    """The photo's file; None for pixels."""
    if isinstance(photo, bytes | bytearray | memoryview):
        return bytes(photo)
    return Path(os.fsdecode(photo)).read_bytes() if isinstance(photo, str | os.PathLike) else None


def _image(photo: Any) -> Image.Image:
    """8-bit RGB of any size."""
    if (data := _bytes(photo)) is not None:
        return decode(data)
    if isinstance(photo, Image.Image):
        with PILLOW:
            return upright(photo)
    if not isinstance(photo, np.ndarray):
        raise BadPhoto(f"a {type(photo).__name__} is no photo; want a path, bytes, a uint8 array or a Pillow image")
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or not photo.size:
        raise BadPhoto(f"the array is {photo.dtype} {photo.shape}, want uint8 (height, width, 3), RGB")
    return upright(Image.fromarray(np.ascontiguousarray(photo)))
