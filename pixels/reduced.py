"""Photos for training, decoded at a half, a quarter or an eighth of their size where that is enough.

libjpeg leaves out the high frequencies while it decodes, which is faster than decoding all pixels and averaging them.
Only plain JPEGs are reduced: grey or YCbCr in sRGB. Everything else is decoded as served photos are.
"""

from __future__ import annotations

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

import pixels
from pixels import jpeg
from pixels.colour import is_srgb
from pixels.errors import BadPhoto
from pixels.parts import Parts

MODES = {"YCbCr": "RGB", "Gray": "L"}  # colours in the file -> mode of a profile for them
# Powers of two only: in between, libjpeg's filters cut sharply and differ more from a full decode (3.4 of 255 at 5/8,
# but 1.4 at 4/8, on pictures full of detail).
REDUCTIONS = (8, 4, 2)


def decode_reduced(data: bytes, side: int) -> NDArray[np.uint8]:
    """(h, w, 3) uint8, writable: the upright photo of a data version, reduced if both sides stay at least `side` px.

    Raises:
        BadPhoto: as for `pixels.decode`.
    """
    found = _plain(data, side) if data.startswith(b"\xff\xd8\xff") else None
    return np.array(pixels.decode(data, is_accepted=True)) if found is None else found


def upright_jpeg(data: bytes) -> bytes | None:
    """The JPEG without metadata if any decoder gives its upright sRGB pixels: it is plain and need not be turned; else None."""
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        parts, _ = _taken_apart(data)
    except (BadPhoto, ValueError):
        return None
    return None if parts is None or parts.orientation in pixels.TURNS else parts.data


def _plain(data: bytes, side: int) -> NDArray[np.uint8] | None:
    """The photo, if it is a plain JPEG without any fault; None: Pillow decides."""
    try:
        parts, (height, width) = _taken_apart(data)
        if parts is None:
            return None
        reduction = next((each for each in REDUCTIONS if min(height, width) >= each * side), 1)
        least = {"min_height": -(-height // reduction), "min_width": -(-width // reduction)} if reduction > 1 else {}
        decoded: NDArray[np.uint8] = simplejpeg.decode_jpeg(parts.data, "RGB", **least)
    except (BadPhoto, ValueError):
        return None
    if parts.orientation in pixels.TURNS:
        return np.array(Image.fromarray(decoded).transpose(pixels.TURNS[parts.orientation]))
    return decoded


def _taken_apart(data: bytes) -> tuple[Parts | None, tuple[int, int]]:
    """Parts of a JPEG, None if it is not plain, and its height and width as stored."""
    parts = jpeg.take_apart(data)
    height, width, colours, _ = simplejpeg.decode_jpeg_header(parts.data)
    is_plain = colours in MODES and height * width <= pixels.MAX_PIXELS and is_srgb(parts.profile, MODES[colours])
    return parts if is_plain else None, (height, width)
