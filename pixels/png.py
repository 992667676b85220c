"""PNG files: their parts, and their checksums."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from pixels.errors import BadPhoto
from pixels.ifd import orientation
from pixels.parts import Parts, Samples

SIGNATURE = b"\x89PNG\r\n\x1a\n"
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
    """Refuses a PNG with a wrong checksum; Pillow does not compare those of pixels.

    Raises:
        BadPhoto: a chunk differs from its checksum.
    """
    for name, _, raw in _chunks(data):
        if len(raw) >= 12 and zlib.crc32(raw[4:-4]) != int.from_bytes(raw[-4:], "big"):
            raise BadPhoto(f"the file is damaged: the checksum of a chunk {name.decode('latin-1')} is wrong")


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
