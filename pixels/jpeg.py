"""JPEG files: their parts, and the damage that decoders pass over in silence.

libjpeg fills whatever is missing with grey and only warns; Pillow does not pass the warnings on. simplejpeg does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import simplejpeg

from pixels.errors import BadPhoto
from pixels.ifd import orientation
from pixels.parts import Parts

SOI, EOI, SOS, DNL = 0xD8, 0xD9, 0xDA, 0xDC
ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
METADATA = {*range(0xE0, 0xF0), 0xFE}
EXIF, XMP, ICC = b"Exif\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
CODED = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # the next marker after entropy-coded data
DAMAGE = ("Corrupt JPEG data", "Premature end", "Inconsistent progression")  # beginnings of libjpeg's warnings
PADDING = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
MOST_PADDING = 16  # zeros that some cameras write before the end marker


class Segment(NamedTuple):
    """A marker and its content; `start` is the position of the marker, `end` that of what follows."""

    marker: int
    content: bytes
    start: int
    end: int


def take_apart(data: bytes) -> Parts:
    """Parts of a JPEG: without comments and metadata, and without what follows its end, such as a second picture."""
    kept, exif, xmp, profile = [data[:2]], b"", b"", {}
    end = len(data)
    for segment in _segments(data):
        if segment.marker == SOS:
            kept.append(data[segment.start : end])
            break
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
    if _lacks_scans(data):
        raise BadPhoto("the file is damaged: some of its scans are missing, so that detail or colour is lost")
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


def _segments(data: bytes, position: int = 2) -> Iterator[Segment]:
    """Yields the segments from `position` on; after the header of a scan, its coded data are skipped."""
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
            found = CODED.search(data, end)
            position = found.start() if found else len(data)


def _lacks_scans(data: bytes) -> bool:
    """True if the scans leave a coefficient of a component without its last bit."""
    missing: dict[int, np.ndarray] = {}  # component -> (64,) bits that are still to come; 255: all
    progressive = False
    for segment in _segments(data):
        content = segment.content
        if segment.marker in FRAMES and len(content) > 6:
            progressive = segment.marker in PROGRESSIVE
            missing = {component: np.full(64, 255) for component in content[6 : 6 + 3 * content[5] : 3]}
        elif segment.marker == SOS and content and len(content) >= 4 + 2 * content[0]:
            number = content[0]
            first, last, bits = content[1 + 2 * number : 4 + 2 * number] if progressive else (0, 63, 0)
            for component in content[1 : 1 + 2 * number : 2]:
                if component in missing:
                    missing[component][first : last + 1] = bits & 15
    return any(levels.any() for levels in missing.values())


def _is_padding(data: bytes, warning: str) -> bool:
    found = PADDING.match(warning)
    number = int(found[1]) if found else 0
    end = data.rfind(b"\xff\xd9")
    return 0 < number <= MOST_PADDING and not any(data[end - number : end])
