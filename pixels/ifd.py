"""Tags of a TIFF file or an EXIF block, read without trusting any of them."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

ORIENTATION = 274
# TIFF's type -> code of `struct`; other types are not numbers that a photo needs
CODES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 16: "Q", 17: "q"}
WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
MOST = 4096  # tags; a broken count may claim any number


class Tag(NamedTuple):
    """An entry: `raw` as it stands in the directory, `value` its content."""

    tag: int
    kind: int
    value: bytes
    raw: bytes


@dataclass(frozen=True)
class Directory:
    """First directory of a TIFF. order: "<" or ">". start: position of its count of entries."""

    order: str
    is_big: bool
    start: int
    tags: tuple[Tag, ...]

    def value(self, tag: int) -> bytes:
        """Content of a tag; b"" if it is missing."""
        return next((each.value for each in self.tags if each.tag == tag), b"")

    def numbers(self, tag: int) -> tuple[float, ...]:
        """Numbers of a tag; empty if it is missing or holds something else."""
        found = next((each for each in self.tags if each.tag == tag and each.kind in CODES), None)
        if found is None:
            return ()
        number = len(found.value) // WIDTHS[found.kind]
        return struct.unpack_from(f"{self.order}{number}{CODES[found.kind]}", found.value)

    def number(self, tag: int) -> float | None:
        """First number of a tag; None if it is missing or holds something else."""
        return next(iter(self.numbers(tag)), None)

    def orientation(self) -> int:
        """EXIF's orientation, 1 to 8; 1 if the tag is missing or holds anything else."""
        number = self.number(ORIENTATION)
        return int(number) if number is not None and number in range(1, 9) else 1

    def packed(self, tags: list[Tag]) -> bytes:
        """Bytes of a directory that holds `tags` and is the last one."""
        count, after = ("Q", "Q") if self.is_big else ("H", "I")
        raw = b"".join(tag.raw for tag in tags)
        return struct.pack(self.order + count, len(tags)) + raw + struct.pack(self.order + after, 0)


def read_directory(data: bytes) -> Directory | None:
    """First directory of a TIFF file or EXIF block; None if there is none that can be read."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 16:
        return None
    is_big = struct.unpack_from(order + "H", data, 2)[0] == 43
    start: int = struct.unpack_from(order + ("Q" if is_big else "I"), data, 8 if is_big else 4)[0]
    return Directory(order, is_big, start, tuple(_tags(data, order, is_big, start)))


def orientation(exif: bytes, xmp: bytes) -> int:
    """Orientation that the EXIF block or else the XMP packet gives, 1 to 8."""
    directory = read_directory(exif.removeprefix(b"Exif\0\0"))
    if directory and directory.number(ORIENTATION) is not None:
        return directory.orientation()
    found = XMP_ORIENTATION.search(xmp)
    return int(found[1]) if found else 1


def _tags(data: bytes, order: str, is_big: bool, start: int) -> Iterator[Tag]:
    head, entry, count_at, inline = (8, 20, "Q", 8) if is_big else (2, 12, "H", 4)
    if start + head > len(data):
        return
    number = struct.unpack_from(order + count_at, data, start)[0]
    for position in range(start + head, start + head + entry * min(number, MOST), entry):
        raw = data[position : position + entry]
        if len(raw) < entry:
            return
        tag, kind = struct.unpack_from(order + "HH", raw)
        count = struct.unpack_from(order + ("Q" if is_big else "I"), raw, 4)[0]
        size = count * WIDTHS.get(kind, 0)
        place = raw[-inline:]
        if size > inline:
            at = struct.unpack(order + ("Q" if is_big else "I"), place)[0]
            yield Tag(tag, kind, data[at : at + size], raw)
        else:
            yield Tag(tag, kind, place[:size], raw)
