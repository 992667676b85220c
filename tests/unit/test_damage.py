"""Damaged files, of which decoders say nothing, are refused; whole ones with odd structure are not."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image

from pixels import BadPhoto, decode, decode_shrunk
from tests.unit.test_pixels import encoded, scene

END = b"\xff\xd9"


def jpeg(**options: object) -> bytes:
    return encoded(scene(160, 160), "JPEG", quality=85, **options)


def coded(data: bytes) -> int:
    """Position of the coded data of the first scan."""
    start = data.index(b"\xff\xda") + 2
    return start + int.from_bytes(data[start : start + 2], "big")


def middle(data: bytes) -> int:
    return (coded(data) + len(data)) // 2


def scan(data: bytes, number: int) -> int:
    """Position of a scan's marker, or of the tables before it."""
    position = 0
    for _ in range(number):
        position = data.index(b"\xff\xda", position + 1)
    return data.rindex(b"\xff\xc4", 0, position) if number > 1 else position


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut, with an end marker": lambda data: data[: middle(data)] + END,
    "cut late, with an end marker": lambda data: data[:-40] + END,
    "64 zeros": lambda data: data[: middle(data)] + bytes(64) + data[middle(data) + 64 :],
    "512 zeros": lambda data: data[: middle(data)] + bytes(512) + data[middle(data) + 512 :],
    "zeros up to the end marker": lambda data: data[: middle(data)] + bytes(len(data) - 2 - middle(data)) + END,
    "a second picture inside": lambda data: data[: middle(data)] + data,
}


@pytest.mark.parametrize("decoder", [decode, lambda data: decode_shrunk(data, 6)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 7}, {"subsampling": 0}])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_jpeg_is_refused(damage: str, options: dict[str, object], decoder: Callable[[bytes], object]) -> None:
    whole = jpeg(**options)
    decoder(whole)
    with pytest.raises(BadPhoto, match=r"damaged|broken"):
        decoder(DAMAGE[damage](whole))


@pytest.mark.parametrize("number", range(2, 10))
def test_a_progressive_jpeg_without_its_last_scans_is_refused(number: int) -> None:
    whole = jpeg(progressive=True)
    cut = whole[: scan(whole, number)] + END
    assert Image.open(io.BytesIO(cut)).convert("RGB").size == (160, 160), "Pillow alone accepts it"
    with pytest.raises(BadPhoto, match="scans are missing"):
        decode(cut)


@pytest.mark.parametrize("change", ["missing", "twice", "renumbered"])
def test_wrong_restart_markers_are_refused(change: str) -> None:
    whole = jpeg(restart_marker_blocks=5)
    marker = whole.index(b"\xff\xd3", coded(whole))
    middle_part = {"missing": b"", "twice": b"\xff\xd3\xff\xd3", "renumbered": b"\xff\xd6"}[change]
    with pytest.raises(BadPhoto, match="damaged"):
        decode(whole[:marker] + middle_part + whole[marker + 2 :])


HARMLESS: dict[str, Callable[[bytes], bytes]] = {
    "text after the end": lambda data: data + b"MotionPhoto_Data" * 100,
    "a second picture after the end": lambda data: data + data,
    "a cut picture after the end": lambda data: data + data[: middle(data)],
    "padding before the end marker": lambda data: data[:-2] + bytes(5) + END,
    "fill bytes before a marker": lambda data: data[:2] + b"\xff" * 7 + data[2:],
    "fill bytes before the end marker": lambda data: data[:-2] + b"\xff" * 7 + END,
    "bytes between the segments": lambda data: data[:20] + bytes(9) + data[20:],
}


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"optimize": True}])
@pytest.mark.parametrize("change", HARMLESS)
def test_what_costs_no_pixel_is_accepted(change: str, options: dict[str, object]) -> None:
    whole = jpeg(**options)
    np.testing.assert_array_equal(decode(HARMLESS[change](whole)), Image.open(io.BytesIO(whole)).convert("RGB"))


@pytest.mark.parametrize("colour", ["white", "black", (128, 128, 128)])
@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"progressive": True}])
def test_a_packshot_on_a_large_plain_background_is_accepted(colour: object, options: dict[str, object]) -> None:
    shot = Image.new("RGB", (1200, 1200), colour)
    shot.paste(scene(40, 40), (900, 200))
    data = encoded(shot, "JPEG", **options)
    np.testing.assert_array_equal(decode(data), Image.open(io.BytesIO(data)).convert("RGB"))


def test_a_photo_of_a_version_is_not_checked_again() -> None:
    assert decode(DAMAGE["cut, with an end marker"](jpeg()), is_accepted=True).size == (160, 160)


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 8
    while position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        yield data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        position += 12 + length


def png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG with right checksums."""
    packed = (struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
              for name, content in chunks)  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "I;16", "LA"])
def test_a_png_without_all_of_its_rows_is_refused(mode: str) -> None:
    image = scene(75, 61).convert("L").convert("I").convert("I;16") if mode == "I;16" else scene(75, 61).convert(mode)
    whole = encoded(image, "PNG")
    decode(whole)
    (header, *_), pixels = (
        png_chunks(whole),
        b"".join(content for name, content in png_chunks(whole) if name == b"IDAT"),
    )
    palette = [(name, content) for name, content in png_chunks(whole) if name == b"PLTE"]
    rows = zlib.decompress(pixels)
    for cut in (rows[: len(rows) // 2], rows[:-1]):
        with pytest.raises(BadPhoto, match="damaged: it holds"):
            decode(png([header, *palette, (b"IDAT", zlib.compress(cut)), (b"IEND", b"")]))


def test_an_interlaced_png_is_read_and_counted() -> None:
    # Pillow does not write interlaced files: a picture of 3 x 2 grey pixels in passes 1, 4, 5, 6 and 7
    header = struct.pack(">IIBBBBB", 3, 2, 8, 0, 0, 0, 1)
    rows = b"\0\x10" + b"\0\x30" + b"\0\x20" + b"\0\x40\x50\xf0"
    whole = png([(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])
    assert np.asarray(decode(whole))[..., 0].tolist() == [[0x10, 0x20, 0x30], [0x40, 0x50, 0xF0]]
    with pytest.raises(BadPhoto, match="holds 9 of 10 bytes"):
        decode(png([(b"IHDR", header), (b"IDAT", zlib.compress(rows[:-1])), (b"IEND", b"")]))


def test_a_png_whose_checksum_differs_is_refused() -> None:
    whole = bytearray(encoded(scene(60, 60), "PNG"))
    whole[whole.index(b"IDAT") + 200] ^= 1
    with pytest.raises(BadPhoto, match="checksum of a chunk IDAT"):
        decode(bytes(whole))


@pytest.mark.parametrize("compression", ["tiff_adobe_deflate", "tiff_lzw", "jpeg"])
def test_a_tiff_with_zeroed_pixels_is_refused(compression: str) -> None:
    whole = encoded(scene(200, 200), "TIFF", compression=compression)
    decode(whole)
    start = len(whole) // 2
    with pytest.raises(BadPhoto):
        decode(whole[:start] + bytes(512) + whole[start + 512 :])
