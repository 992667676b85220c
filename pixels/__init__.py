"""From the bytes of a photo to the pixels that every part of CleanShelf sees.

One decoder for ingestion, training and the client: a photo that was accepted once gives the same pixels everywhere.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 64_000_000  # about 190 MB as RGB; a decompression bomb is refused before it is decoded
FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
)  # no others: Pillow hands an EPS to Ghostscript, which runs what it reads

__all__ = ["FORMATS", "MAX_PIXELS", "BadPhoto", "decode", "to_square", "upright"]


class BadPhoto(ValueError):
    """The bytes are not a photo that can be used; the message says why.

    `reason` is that alone, where the message also says of which photo and what to do.
    """

    def __init__(self, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


def decode(data: bytes) -> Image.Image:
    """The photo as upright 8-bit RGB.

    EXIF rotation is applied; CMYK, 16-bit, palette and transparent pictures are converted (transparency onto white);
    of an animation the first frame is taken.

    Raises:
        BadPhoto: empty, truncated, not a picture in one of FORMATS, or more than MAX_PIXELS pixels.
    """
    if not data:
        raise BadPhoto("the file is empty (0 bytes)")
    with _faults_named():
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(image)
        image.seek(0)
        return _to_rgb(ImageOps.exif_transpose(image))


def upright(image: Image.Image) -> Image.Image:
    """What `decode` gives, of a picture that Pillow has opened already; the picture itself stays as it is.

    Raises:
        BadPhoto: truncated, or more than MAX_PIXELS pixels.
    """
    with _faults_named():
        _check_size(image)
        return _to_rgb(ImageOps.exif_transpose(image))


def to_square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The photo squeezed to (size, size, 3) uint8, antialiased; size in pixels."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8)


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise BadPhoto(f"{image.width} x {image.height} pixels is over the limit of {MAX_PIXELS:,}")


@contextmanager
def _faults_named() -> Iterator[None]:
    """Say BadPhoto where Pillow says any of its many errors."""
    try:
        yield
    except (BadPhoto, MemoryError):  # a full machine says nothing about the photo
        raise
    except UnidentifiedImageError:
        raise BadPhoto(f"not a picture in a format that can be read ({', '.join(FORMATS)})") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadPhoto(f"more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on broken bytes
        raise BadPhoto(f"cannot be decoded ({error})") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of any Pillow mode; 16-bit values are scaled, not clipped, and transparency lies on white."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        is_16_bit = image.mode.startswith("I;16") or values.max(initial=0.0) > 255  # "I" and "F" do not say their range
        image = Image.fromarray(np.rint(values / (257 if is_16_bit else 1)).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
