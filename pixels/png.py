"""PNG files: their parts, and their checksums."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from pixels.errors import BadPhoto
from pixels.ifd import orientation
from pixels.parts import Parts, Samples, unpacked_bytes

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # type of colour -> samples of a pixel
# Adam7: first column and row of each pass, and its steps
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
XMP, RAW_EXIF = b"XML:com.adobe.xmp\0", b"Raw profile type exif\0"
MAX_METADATA_BYTES = 16_000_000  # of one chunk, decompressed; a longer one is ignored


class Chunk(NamedTuple):
    """A chunk; `raw` is the whole of it, with length, name and checksum."""

    name: bytes
    content: bytes
    raw: bytes


def take_apart(data: bytes) -> Parts:
    """Parts of a PNG: its first picture alone, without text and other metadata."""
    kept, exif, xmp, profile, samples = [SIGNATURE], b"", b"", b"", Samples()
    for name, content, raw in _chunks(data):
        if name in PIXELS:
            kept.append(raw)
        elif name == b"eXIf":
            exif = content
        elif name == b"iCCP":
            profile = _unpacked(content.partition(b"\0")[2][1:])
        elif name == b"sBIT" and content:
            samples = Samples(bits=content[0], high=65535 if content[0] == 16 else None)
        elif name == b"iTXt" and content.startswith(XMP):
            xmp = content
        elif name in (b"tEXt", b"zTXt") and content.startswith(RAW_EXIF):
            exif = exif or _raw_profile(content.removeprefix(RAW_EXIF), is_packed=name == b"zTXt")
    return Parts(b"".join(kept), orientation(exif, xmp), profile, samples)


def check(data: bytes) -> None:
    """Refuses a PNG that decodes with gaps; Pillow neither compares checksums of pixels nor counts the rows.

    Raises:
        BadPhoto: a chunk differs from its checksum, or pixels are missing.
    """
    chunks = list(_chunks(data))
    for name, _, raw in chunks:
        if len(raw) >= 12 and zlib.crc32(raw[4:-4]) != int.from_bytes(raw[-4:], "big"):
            raise BadPhoto(f"the file is damaged: the checksum of a chunk {name.decode('latin-1')} is wrong")
    wanted = _wanted_bytes(chunks[0].content)
    try:
        found = unpacked_bytes(content for name, content, _ in chunks if name == b"IDAT")
    except zlib.error as error:
        raise BadPhoto(f"the file is damaged or truncated: its pixels cannot be decompressed ({error})") from None
    if found < wanted:
        raise BadPhoto(f"the file is damaged: it holds {found:,} of {wanted:,} bytes of pixels")


def _wanted_bytes(header: bytes) -> int:
    """Bytes of all rows, each with its filter, by the content of IHDR."""
    width, height, depth, kind, _, _, is_interlaced = struct.unpack(">IIBBBBB", header)
    passes = PASSES if is_interlaced else ((0, 0, 1, 1),)
    sizes = [
        ((width - left + across - 1) // across, (height - top + down - 1) // down) for left, top, across, down in passes
    ]
    return sum(
        (columns * CHANNELS[kind] * depth + 7) // 8 * rows + rows for columns, rows in sizes if columns > 0 < rows
    )


def _chunks(data: bytes) -> Iterator[Chunk]:
    position = len(SIGNATURE)
    while position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        yield Chunk(name, data[position + 8 : position + 8 + length], data[position:end])
        if name == b"IEND":
            return
        position = end


def _unpacked(content: bytes) -> bytes:
    """Decompressed content; b"" if it is broken or too long."""
    unpacker = zlib.decompressobj()
    try:
        found = unpacker.decompress(content, MAX_METADATA_BYTES)
    except zlib.error:
        return b""
    return found if unpacker.eof else b""


def _raw_profile(content: bytes, *, is_packed: bool) -> bytes:
    """EXIF block that ImageMagick writes as hexadecimal text, after three lines."""
    text = _unpacked(content[1:]) if is_packed else content
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""
