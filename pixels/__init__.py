"""Decoder of photos, used by every part of CleanShelf.

Ingestion, training and the client share it, so an accepted photo gives the same pixels everywhere.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from contract import CleanShelfError

MAX_PIXELS = 64_000_000  # about 190 MB as RGB; a decompression bomb is refused before it is decoded
# No other formats: Pillow passes EPS files to Ghostscript, which executes their content.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

__all__ = ["FORMATS", "MAX_PIXELS", "BadPhoto", "decode", "decode_shrunk", "shrunk", "to_square", "upright"]


class BadPhoto(CleanShelfError, ValueError):
    """The bytes are not a usable photo; the message says why.

    `reason` is the fault alone; the message may also name the photo and say what to do.
    """

    def __init__(self, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


def decode(data: bytes) -> Image.Image:
    """The photo as upright 8-bit RGB.

    Applies the EXIF rotation, converts CMYK, 16-bit, palette and transparent pictures (transparency becomes white), and
    takes the first frame of an animation.

    Raises:
        BadPhoto: empty, truncated, not a picture in one of FORMATS, or more than MAX_PIXELS pixels.
    """
    with _raising_bad_photo():
        return _upright(_opened(data))


def decode_shrunk(data: bytes, side: int) -> tuple[Image.Image, tuple[int, int]]:
    """The decoded photo as `shrunk` gives it, within about 1 of 255, and the photo's true width and height.

    A JPEG is read completely, so the same files are refused, but decoded at a lower resolution, which is faster.

    Raises:
        BadPhoto: as for `decode`.
    """
    with _raising_bad_photo():
        image = _opened(data)
        width, height = image.size
        drafted = image.draft(None, (8 * side, 8 * side))  # None for any format but JPEG
        image.load()
        is_on_its_side = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        if drafted:
            image = shrunk(image, side, box=drafted[1])  # before the rotation: the last row and column may be padding
        return shrunk(_upright(image), side), (height, width) if is_on_its_side else (width, height)


def shrunk(image: Image.Image, side: int, *, box: tuple[float, float, float, float] | None = None) -> Image.Image:
    """The photo, or its part in the box (left, top, right, bottom), resized to side x side px: means of equal parts.

    Uses a Hamming filter, whose windows overlap slightly: sharp borders would be sensitive to the photo's size.
    """
    return image.resize((side, side), Image.Resampling.HAMMING, box=box)


def upright(image: Image.Image) -> Image.Image:
    """The result of `decode` for a picture that Pillow has already opened, which stays unchanged.

    Raises:
        BadPhoto: truncated, or more than MAX_PIXELS pixels.
    """
    with _raising_bad_photo():
        _check_size(image)
        return _to_rgb(ImageOps.exif_transpose(image))


def to_square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The photo squeezed to (size, size, 3) uint8, with antialiasing; size in pixels."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8)


def _opened(data: bytes) -> Image.Image:
    """The first frame, not yet decoded."""
    if not data:
        raise BadPhoto("the file is empty (0 bytes)")
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    _check_size(image)
    image.seek(0)
    return image


def _upright(image: Image.Image) -> Image.Image:
    """The image in RGB and upright. Changes `image`, as a copy would take about as long as decoding a packshot."""
    ImageOps.exif_transpose(image, in_place=True)
    return _to_rgb(image)


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise BadPhoto(f"{image.width} x {image.height} pixels is over the limit of {MAX_PIXELS:,}")


@contextmanager
def _raising_bad_photo() -> Iterator[None]:
    """Raises BadPhoto for any of Pillow's many errors."""
    try:
        yield
    except (BadPhoto, MemoryError):  # a lack of memory is not the photo's fault
        raise
    except UnidentifiedImageError:
        raise BadPhoto(f"not a picture in a format that can be read ({', '.join(FORMATS)})") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadPhoto(f"more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # Pillow's decoders raise nearly any type on corrupt bytes
        raise BadPhoto(f"cannot be decoded ({error})") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of an image of any mode; 16-bit values are scaled, not clipped, and transparency becomes white."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        # Modes "I" and "F" have no fixed range.
        is_16_bit = image.mode.startswith("I;16") or values.max(initial=0.0) > 255
        image = Image.fromarray(np.rint(values / (257 if is_16_bit else 1)).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")
