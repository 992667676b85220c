"""JPEG files: their parts, and the damage that decoders pass over in silence.

libjpeg fills whatever is missing with grey and only warns; Pillow does not pass the warnings on. simplejpeg does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pixels.errors import BadPhoto
from pixels.ifd import orientation
from pixels.parts import Parts

EOI, SOS, DHT = 0xD9, 0xDA, 0xC4
ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
METADATA = {*range(0xE0, 0xF0), 0xFE}
EXIF, XMP, ICC = b"Exif\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
IN_CODE = np.isin(np.arange(256), [0x00, 0xFF, *range(0xD0, 0xD8)])  # bytes that follow 0xff without ending coded data
DAMAGE = ("Corrupt JPEG data", "Premature end", "Inconsistent progression")  # beginnings of libjpeg's warnings
PADDING = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
MOST_PADDING = 16  # zeros that some cameras write before the end marker
# More than a block of coefficients that are all -1, unless the code of zeros says that a block ends.
ZEROS = bytes(48)


class Segment(NamedTuple):
    """A marker and its content; `start` is the position of the marker, `end` that of what follows."""

    marker: int
    content: bytes
    start: int
    end: int


def take_apart(data: bytes) -> Parts:
    """Parts of a JPEG: without comments and metadata.

    Raises:
        BadPhoto: its samples do not have 8 bits.
    """
    kept, exif, xmp, profile = [data[:2]], b"", b"", {}
    for segment in _segments(data):
        if segment.marker == SOS:
            kept.append(data[segment.start :])
            break
        if segment.marker in FRAMES and segment.content and segment.content[0] != 8:
            raise BadPhoto(f"a JPEG with {segment.content[0]} bits a sample, which cannot be read; save it with 8")
        if segment.marker not in METADATA or _tells_colours(segment):
            kept.append(b"\xff" + data[segment.start + 1 : segment.end])
        elif segment.content.startswith(EXIF):
            exif = exif or segment.content
        elif segment.content.startswith(XMP):
            xmp = xmp or segment.content
        elif segment.content.startswith(ICC):
            profile[segment.content[12:13]] = segment.content[14:]
    joined = b"".join(profile[number] for number in sorted(profile))
    return Parts(b"".join(kept), orientation(exif, xmp), joined)


def check(data: bytes) -> None:
    """Refuses a JPEG, as `take_apart` gives it, that decodes with gaps.

    Raises:
        BadPhoto: libjpeg warns of missing or damaged data, or scans are missing.
    """
    if gap := _gap(data):
        raise BadPhoto(f"the file is damaged: {gap}")
    try:
        simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1)  # an eighth of its size
    except ValueError as warning:
        reason = str(warning)
        if reason.startswith(DAMAGE) and not _is_padding(data, reason):
            raise BadPhoto(f"the file is damaged: {reason}") from None


def _tells_colours(segment: Segment) -> bool:
    """True if libjpeg takes the colour space of the samples from this segment."""
    jfif, adobe = segment.content.startswith(b"JFIF\0"), segment.content.startswith(b"Adobe")
    return (segment.marker == 0xE0 and jfif and len(segment.content) >= 14) or (
        segment.marker == 0xEE and adobe and len(segment.content) >= 12
    )


def _segments(data: bytes) -> Iterator[Segment]:
    """Yields the segments; after the header of a scan, its coded data are skipped."""
    position, markers = 2, None
    while 0 <= (position := data.find(b"\xff", position)) < len(data) - 1:
        marker = data[position + 1]
        if marker in (0x00, 0xFF):
            position += 1
            continue
        length = 0 if marker in ALONE or marker == EOI else int.from_bytes(data[position + 2 : position + 4], "big")
        end = position + 2 + length
        yield Segment(marker, data[position + 4 : end], position, end)
        if marker == EOI:
            return
        position = end
        if marker == SOS:
            markers = _markers(data) if markers is None else markers
            following = np.searchsorted(markers, end)
            position = int(markers[following]) if following < len(markers) else len(data)


def _markers(data: bytes) -> NDArray[np.int64]:
    """Positions of the markers that end coded data."""
    codes = np.frombuffer(data, np.uint8)
    found = np.flatnonzero(codes[:-1] == 0xFF)
    return found[~IN_CODE[codes[found + 1]]]


def _gap(data: bytes) -> str:
    """The gap that the headers of the scans and the bytes of their codes show; "" if they show none."""
    missing: dict[int, list[int]] = {}  # component -> bits of each coefficient that are still to come
    tables: dict[int, int] = {}  # AC table -> the symbol of its code of zeros
    progressive, scans = False, list[Segment]()
    for segment in _segments(data):
        content = segment.content
        if segment.marker in FRAMES and len(content) > 6:
            progressive = segment.marker in PROGRESSIVE
            missing = {component: [255] * 64 for component in content[6 : 6 + 3 * content[5] : 3]}
        elif segment.marker == DHT:
            tables.update(_zero_codes(content))
        elif segment.marker == SOS and content and len(content) >= 4 + 2 * content[0]:
            scans.append(segment)
            first, last, bits = content[-3:] if progressive else (0, 63, 0)
            for component in content[1 : 1 + 2 * content[0] : 2]:
                if component in missing:
                    missing[component][first : last + 1] = [bits & 15] * (last + 1 - first)
    if any(map(any, missing.values())):
        return "some of its scans are missing, so that detail or colour is lost"
    zeros_mean_detail = not progressive and len(scans) == 1 and any(symbol & 15 for symbol in tables.values())
    if zeros_mean_detail and 0 <= data.find(ZEROS, scans[0].end) < data.find(b"\xff\xd9", scans[0].end):
        return "a stretch of it is zero"
    return ""


def _zero_codes(content: bytes) -> Iterator[tuple[int, int]]:
    """Yields number of each AC table in a DHT segment, and the symbol whose code is all zeros."""
    while len(content) > 17:
        if content[0] >> 4:
            yield content[0], content[17]
        content = content[17 + sum(content[1:17]) :]


def _is_padding(data: bytes, warning: str) -> bool:
    found = PADDING.match(warning)
    number = int(found[1]) if found else 0
    end = data.rfind(b"\xff\xd9")
    return 0 < number <= MOST_PADDING and not any(data[end - number : end])
