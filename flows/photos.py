"""Photos as files become columns: decoded, hashed, looked at. The part of ingestion that takes the time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pixels import BadPhoto
from pixels.look import BYTES, look_at

# What is known of a photo once it is decoded; all zeros where it could not be. `look` is of pixels.look.
PHOTO = np.dtype([("sha256", "V32"), ("width", "i4"), ("height", "i4"), ("look", f"V{BYTES}")])


class Opened(NamedTuple):
    """A batch of N files, in the order in which they were asked for.

    photo: (N,) of PHOTO; content: N times the bytes of the file, b"" where it is refused; reason: N times why it is
    refused, "" where it is not.
    """

    photo: NDArray[np.void]
    content: list[bytes]
    reason: list[str]


def open_photos(files: Sequence[str]) -> Opened:
    """Each file read, decoded and hashed. It needs nothing but the paths, so it runs in any thread or process."""
    opened = [_open(file) for file in files]
    photos = np.array([photo for photo, _, _ in opened], PHOTO)
    return Opened(photos, [content for _, content, _ in opened], [reason for _, _, reason in opened])


def _open(file: str) -> tuple[tuple[bytes, int, int, bytes], bytes, str]:
    try:
        with open(file, "rb") as stream:
            content = stream.read()
        look, (width, height) = look_at(content)
    except BadPhoto as error:
        return (b"", 0, 0, b""), b"", str(error)
    except OSError as error:
        return (b"", 0, 0, b""), b"", f"cannot be read ({error.strerror})"
    return (hashlib.sha256(content).digest(), width, height, look.tobytes()), content, ""
