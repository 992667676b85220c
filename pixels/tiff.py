"""TIFF files: their parts, and what they say about their sample values."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator

from pixels import jpeg
from pixels.errors import BadPhoto
from pixels.ifd import Directory, Tag, orientation, read_directory
from pixels.parts import Parts, Samples, unpacked_bytes

PHOTOMETRIC, BITS, FORMAT, ICC, XMP = 262, 258, 339, 34675, 700
LOWEST, HIGHEST = (340, 280), (341, 281)  # SMinSampleValue or MinSampleValue, and the same for the highest
KINDS = {1: "unsigned", 2: "signed", 3: "float"}
WHITE_IS_ZERO = 0
COMPRESSION, TABLES, STRIPS, TILES = 259, 347, (273, 279), (324, 325)
JPEG, DEFLATE = 7, (8, 32946)
# Tags that a decoder needs: size, layout, compression, palette, colour space of the samples
PIXELS = {256, 257, BITS, 259, PHOTOMETRIC, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332,
          333, 334, 338, FORMAT, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532, 50674}  # fmt: skip


def take_apart(data: bytes) -> Parts:
    """Parts of a TIFF: its first picture alone, as a file in which zero is black."""
    directory = read_directory(data)
    if directory is None or not directory.tags:
        return Parts(data)
    kept = [_with_black_zero(tag, directory) for tag in directory.tags if tag.tag in PIXELS]
    packed = directory.packed(kept)
    file = data[: directory.start] + packed + data[directory.start + len(packed) :]
    turned = directory.orientation() if directory.number(274) is not None else orientation(b"", directory.value(XMP))
    return Parts(file, turned, directory.value(ICC), _samples(directory))


def check(data: bytes) -> None:
    """Refuses a TIFF with damaged pixels where its compression shows it: JPEG and deflate, for which libtiff is silent.

    Raises:
        BadPhoto: as `jpeg.check`, or a strip differs from its checksum.
    """
    directory = read_directory(data)
    compression = directory.number(COMPRESSION) if directory else None
    if directory is None or compression not in (JPEG, *DEFLATE):
        return
    for strip in _strips(data, directory):
        if compression == JPEG:
            jpeg.check(b"\xff\xd8" + directory.value(TABLES)[2:-2] + strip[2:])
            continue
        try:
            unpacked_bytes([strip])
        except zlib.error as error:
            raise BadPhoto(f"the file is damaged or truncated: its pixels cannot be decompressed ({error})") from None


def _strips(data: bytes, directory: Directory) -> Iterator[bytes]:
    """Yields the compressed strips or tiles."""
    for places, sizes in (STRIPS, TILES):
        for start, size in zip(directory.numbers(places), directory.numbers(sizes), strict=False):
            yield data[int(start) : int(start) + int(size)]


def _with_black_zero(tag: Tag, directory: Directory) -> Tag:
    """The tag, saying that zero is black if it said that zero is white."""
    if tag.tag != PHOTOMETRIC or directory.number(PHOTOMETRIC) != WHITE_IS_ZERO:
        return tag
    one = (1).to_bytes(len(tag.value), "little" if directory.order == "<" else "big")
    inline = len(tag.raw) - (8 if directory.is_big else 4)
    return tag._replace(raw=tag.raw[:inline] + one + tag.raw[inline + len(one) :])


def _samples(directory: Directory) -> Samples:
    low, high = (next(filter(_is_finite, map(directory.number, tags)), None) for tags in (LOWEST, HIGHEST))
    return Samples(
        bits=int(directory.number(BITS) or 1),
        kind=KINDS.get(int(directory.number(FORMAT) or 1), ""),
        low=low,
        high=high,
        is_inverted=directory.number(PHOTOMETRIC) == WHITE_IS_ZERO,
    )


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
