"""Conversion of a caller's photos into what is sent to a graph."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixels import BadPhoto, decode, read, to_square, upright

Photo = str | os.PathLike[str] | bytes | NDArray[np.uint8] | Image.Image
# Pillow reads the file of an opened image on first access, and two threads may access the same image.
PILLOW = threading.Lock()


def square(photo: Photo, *, number: int, size: int) -> NDArray[np.uint8]:
    """(size, size, 3) uint8 RGB pixels of a photo.

    Args:
        photo: a path, the bytes of a file, an (H, W, 3) uint8 RGB array or a Pillow image.

    Raises:
        BadPhoto: the message names the photo, by its path or else by its number, and the reason.
    """
    with _faults_named(photo, number):
        return to_square(_image(photo), size)


def encoded(photo: Photo, *, number: int, size: int) -> bytes:
    """Bytes of the photo's file; of an array or image, a lossless PNG of its `square`.

    Raises:
        BadPhoto: as `square`, but the content of a file is not checked.
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
    """Bytes of the photo's file; None for an array or image."""
    if isinstance(photo, bytes | bytearray | memoryview):
        return bytes(photo)
    return read(os.fsdecode(photo)) if isinstance(photo, str | os.PathLike) else None


def _image(photo: Any) -> Image.Image:
    """Image in 8-bit RGB, of any size."""
    if (data := _bytes(photo)) is not None:
        return decode(data)
    if isinstance(photo, Image.Image):
        with PILLOW:
            return upright(photo)
    if not isinstance(photo, np.ndarray):
        raise BadPhoto(f"a {type(photo).__name__} is not a photo; want a path, bytes, a uint8 array or a Pillow image")
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or not photo.size:
        raise BadPhoto(f"the array is {photo.dtype} {photo.shape}, want uint8 (height, width, 3), RGB")
    return upright(Image.fromarray(np.ascontiguousarray(photo)))
