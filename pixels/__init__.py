"""Decoder of photos, used by every part of CleanShelf.

Ingestion, training and the client share it, so an accepted photo gives the same pixels everywhere. Pixels decide: a
fault in the metadata of a file never refuses it.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from pixels import jpeg, png, tiff
from pixels.colour import check_kept, scaled, to_rgb
from pixels.errors import BadPhoto
from pixels.ifd import orientation
from pixels.parts import Parts

MAX_PIXELS = 64_000_000  # about 190 MB as RGB; a decompression bomb is refused before it is decoded
# No other formats: Pillow passes EPS files to Ghostscript, which executes their content.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# Beginnings of the formats whose files are taken apart
APART: dict[bytes, Callable[[bytes], Parts]] = {
    b"\xff\xd8\xff": jpeg.take_apart,
    png.SIGNATURE: png.take_apart,
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), tiff.take_apart),
}
CHECKS = {"JPEG": jpeg.check, "PNG": png.check, "TIFF": tiff.check}  # of what a decoder passes over in silence
TURNS = dict(
    zip(
        range(2, 9),
        (
            Image.Transpose.FLIP_LEFT_RIGHT,
            Image.Transpose.ROTATE_180,
            Image.Transpose.FLIP_TOP_BOTTOM,
            Image.Transpose.TRANSPOSE,
            Image.Transpose.ROTATE_270,
            Image.Transpose.TRANSVERSE,
            Image.Transpose.ROTATE_90,
        ),
        strict=True,
    )
)  # EXIF's orientation -> the turn that makes the picture upright
BLANK = 3  # levels; a picture that stays within fewer shows nothing
DEEP = {"16B": "16L", "16L": "16B", "16N": "16B"}  # sample layout -> that which reads the other byte
GREY_ALPHA = "LA;16B"

__all__ = ["FORMATS", "MAX_PIXELS", "BadPhoto", "decode", "decode_shrunk", "read", "shrunk", "to_square", "upright"]


def read(path: str | os.PathLike[str]) -> bytes:
    """Bytes of the photo's file.

    Raises:
        BadPhoto: it is a folder, a pipe or a device; a pipe would be read forever.
        OSError: it cannot be read.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise BadPhoto("is not a file")
    return Path(path).read_bytes()


def decode(data: bytes, *, is_accepted: bool = False, side: int | None = None) -> Image.Image:
    """The photo as upright 8-bit sRGB.

    Applies the EXIF rotation and the ICC profile, converts CMYK, deep, palette and transparent pictures (transparency
    becomes white), and takes the first frame of an animation.

    Args:
        is_accepted: the photo is of a data version, which checked it for damage when it was ingested.
        side: pixels to which the photo will be shrunk; a large JPEG is decoded at a lower resolution, at least twice this.

    Raises:
        BadPhoto: empty, truncated, damaged, not a picture in one of FORMATS, or more than MAX_PIXELS pixels.
    """
    with _raising_bad_photo():
        image, parts = _opened(data)
        if not is_accepted:
            _check(image, parts)
        if side is not None:
            image.draft(None, (2 * side, 2 * side))  # does nothing for any format but JPEG
        rgb = _to_rgb(image, parts)
        if not is_accepted:
            check_kept(image, rgb)
        return _upright(rgb, parts)


def decode_shrunk(data: bytes, side: int) -> tuple[Image.Image, tuple[int, int]]:
    """The decoded photo as `shrunk` gives it, within about 1 of 255, and the photo's true width and height.

    A JPEG is read completely, so the same files are refused, but decoded at a lower resolution, which is faster.

    Raises:
        BadPhoto: as for `decode`, or the photo is blank.
    """
    with _raising_bad_photo():
        image, parts = _opened(data)
        _check(image, parts)
        width, height = image.size
        drafted = image.draft(None, (8 * side, 8 * side))  # None for any format but JPEG
        rgb = _to_rgb(image, parts)
        check_kept(image, rgb)
        if _is_blank(rgb) and (not drafted or _is_blank(decode(data))):
            raise BadPhoto("it is blank: all of it has one colour")
        if drafted:
            rgb = shrunk(rgb, side, box=drafted[1])  # before the rotation: the last row and column may be padding
        is_on_its_side = parts.orientation >= 5
        return shrunk(_upright(rgb, parts), side), (height, width) if is_on_its_side else (width, height)


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
        image.load()
        parts = _told(image, b"")
        rgb = to_rgb(image, parts.profile)
        check_kept(image, rgb)
        return _upright(rgb.copy() if rgb is image else rgb, parts)


def to_square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The photo squeezed to (size, size, 3) uint8, with antialiasing; size in pixels."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8)


def _opened(data: bytes) -> tuple[ImageFile.ImageFile, Parts]:
    """The first frame, not yet decoded, and the parts of its file."""
    if not data:
        raise BadPhoto("the file is empty (0 bytes)")
    take_apart = next((APART[start] for start in APART if data.startswith(start)), None)
    parts = take_apart(data) if take_apart else Parts(data)
    try:
        image = Image.open(io.BytesIO(parts.data), formats=FORMATS)
    except UnidentifiedImageError:
        if take_apart is not tiff.take_apart:
            raise
        samples = f"{parts.samples.bits} bits a sample, {parts.samples.kind or 'of an unknown kind'}"
        raise BadPhoto(f"a TIFF that cannot be read ({samples}); save it as PNG or JPEG") from None
    _check_size(image)
    image.seek(0)
    return image, parts if take_apart else _told(image, data)


def _told(image: Image.Image, data: bytes) -> Parts:
    """Parts of a file by what Pillow has read of its metadata."""
    exif, xmp = (value if isinstance(value := image.info.get(name), bytes) else b"" for name in ("exif", "xmp"))
    profile = image.info.get("icc_profile")
    return Parts(data, orientation(exif, xmp), profile if isinstance(profile, bytes) else b"")


def _check(image: Image.Image, parts: Parts) -> None:
    if image.format in CHECKS:
        CHECKS[image.format](parts.data)


def _is_blank(rgb: Image.Image) -> bool:
    return all(high - low < BLANK for low, high in _extrema(rgb))


def _extrema(image: Image.Image) -> tuple[tuple[int, int], ...]:
    """Lowest and highest value of each band of an RGB or RGBA image."""
    return cast(tuple[tuple[int, int], ...], image.getextrema())


def _to_rgb(image: ImageFile.ImageFile, parts: Parts) -> Image.Image:
    """RGB of an opened image, which is not yet turned."""
    layout = _layout(image)
    image.load()
    is_dark = (
        layout[-3:] in DEEP and image.mode in ("RGB", "RGBA") and max(high for _, high in _extrema(image)[:3]) < 64
    )
    return to_rgb(_deepened(image, parts, layout) if is_dark else image, parts.profile, parts.samples)


def _layout(image: ImageFile.ImageFile) -> str:
    """Pillow's name for the layout of the samples in the file; "" if the format has only one."""
    args = image.tile[0].args if image.tile else ""
    first = args[0] if isinstance(args, tuple) else args
    return first if isinstance(first, str) else ""


def _deepened(image: Image.Image, parts: Parts, layout: str) -> Image.Image:
    """The image with its lower bytes too, of which Pillow takes the upper: 10 to 14 bits in 16 come out dark."""
    if layout == GREY_ALPHA:  # no layout reads its lower bytes, but a pixel has the bytes of four 8-bit samples
        both = _as_layout(parts, "RGBA")
        values = (both[..., ::2] * 256 + both[..., 1::2])[..., [0, 0, 0, 1]]
    else:
        values = np.asarray(image).astype(np.float64) * 256 + _as_layout(parts, layout[:-3] + DEEP[layout[-3:]])
    colours, alpha = values[..., :3], values[..., 3:]
    bands = [scaled(band, parts.samples) for band in (colours, alpha) if band.size]
    return Image.fromarray(np.concatenate(bands, axis=-1), image.mode)


def _as_layout(parts: Parts, layout: str) -> NDArray[np.float64]:
    """The samples that Pillow finds if the file has this layout."""
    image = Image.open(io.BytesIO(parts.data), formats=FORMATS)
    tile = image.tile[0]
    image.tile = [tile._replace(args=(layout, *tile.args[1:]) if isinstance(tile.args, tuple) else layout)]
    return np.asarray(image).astype(np.float64)


def _upright(image: Image.Image, parts: Parts) -> Image.Image:
    return image.transpose(TURNS[parts.orientation]) if parts.orientation in TURNS else image


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
