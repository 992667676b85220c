"""Parts of a photo's file: the bytes that make its pixels, and the few metadata that change them."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

PIECE_BYTES = 1 << 20  # decompressed at a time


@dataclass(frozen=True)
class Samples:
    """Declaration of a file about its sample values; 0, "" and None where it says nothing.

    bits: significant bits of a sample. kind: "unsigned", "signed" or "float". low, high: values of black and white.
    is_inverted: the lowest value is white.
    """

    bits: int = 0
    kind: str = ""
    low: float | None = None
    high: float | None = None
    is_inverted: bool = False


@dataclass(frozen=True)
class Parts:
    """A file without the metadata that cannot change its pixels, so that a fault in these does not refuse the photo.

    data: a file of the same kind. orientation: EXIF's, 1 to 8. profile: ICC profile, b"" if there is none.
    """

    data: bytes
    orientation: int = 1
    profile: bytes = b""
    samples: Samples = field(default_factory=Samples)


def unpacked_bytes(packed: Iterable[bytes]) -> int:
    """Number of bytes that a zlib stream in several pieces holds, without keeping them.

    Raises:
        zlib.error: the stream is broken, differs from its checksum or ends early.
    """
    unpacker, number = zlib.decompressobj(), 0
    for piece in packed:
        while piece and not unpacker.eof:
            number += len(unpacker.decompress(piece, PIECE_BYTES))
            piece = unpacker.unconsumed_tail
    while not unpacker.eof and (more := unpacker.decompress(b"", PIECE_BYTES)):
        number += len(more)
    if not unpacker.eof:
        raise zlib.error("it ends early")
    return number
