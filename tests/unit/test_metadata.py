"""Metadata never refuse a photo, whatever they hold; the few that change its pixels are applied."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from pixels import decode, decode_shrunk, upright
from tests.unit.test_damage import png, png_chunks
from tests.unit.test_pixels import encoded, scene

ORIENTATION, X_RESOLUTION = 274, 282


def exif(*entries: tuple[int, int, int, bytes], tail: bytes = b"", order: str = "<") -> bytes:
    """An EXIF block with the given entries (tag, type, count, four bytes), and `tail` after them."""
    packed = b"".join(struct.pack(order + "HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return b"Exif\0\0" + start + struct.pack(order + "H", len(entries)) + packed + bytes(4) + tail


def turned(number: int, order: str = "<") -> tuple[int, int, int, bytes]:
    return (ORIENTATION, 3, 1, struct.pack(order + "HH", number, 0))


AFTER = 8 + 2 + 2 * 12 + 4  # position of the tail behind two entries
EXIFS = {
    "no denominator": exif(turned(6), (X_RESOLUTION, 5, 1, struct.pack("<I", AFTER)), tail=struct.pack("<II", 1, 0)),
    "signed": exif(turned(6), (X_RESOLUTION, 10, 1, struct.pack("<I", AFTER)), tail=struct.pack("<ii", -1, 0)),
    "text for a number": exif(turned(6), (X_RESOLUTION, 2, 4, b"300\0")),
    "far outside": exif(turned(6), (X_RESOLUTION, 5, 1, struct.pack("<I", 2**31))),
    "billions of values": exif(turned(6), (0x9286, 7, 2**32 - 1, bytes(4))),
    "unknown type": exif(turned(6), (X_RESOLUTION, 99, 1, bytes(4))),
    "cut": exif(turned(6), (X_RESOLUTION, 5, 1, bytes(4)))[:-14],
    "big endian": exif(turned(6, ">"), (X_RESOLUTION, 5, 0, bytes(4)), order=">"),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("fault", EXIFS)
def test_a_fault_in_exif_costs_neither_the_photo_nor_its_rotation(fault: str, kind: str) -> None:
    data = encoded(scene(40, 20), kind, exif=EXIFS[fault])
    expected = Image.open(io.BytesIO(encoded(scene(40, 20), kind))).convert("RGB").transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(decode(data), expected)
    assert decode_shrunk(data, 6)[1] == (20, 40)


@pytest.mark.parametrize("number", [0, 9, 65535])
def test_an_impossible_orientation_is_ignored(number: int) -> None:
    assert decode(encoded(scene(40, 20), "JPEG", exif=exif(turned(number)))).size == (40, 20)


def test_the_orientation_of_xmp_counts_if_exif_has_none() -> None:
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    for data in (encoded(scene(40, 20), "JPEG", xmp=xmp), encoded(scene(40, 20), "WEBP", xmp=xmp)):
        assert decode(data).size == (20, 40)
    assert decode(encoded(scene(40, 20), "JPEG", xmp=xmp, exif=exif(turned(1)))).size == (40, 20)


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


JPEG_SEGMENTS = {
    "IPTC": segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\x00\x00\xff\xff\xff\xff" + b"x" * 30),
    "XMP": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta <<<\xff\xfe"),
    "several pictures": segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
    "cut profile": segment(0xE2, b"ICC_PROFILE\0\x02\x03" + b"x" * 400),
    "short JFIF": segment(0xE0, b"JFIF\0\1"),
    "short Adobe": segment(0xEE, b"Adobe\0"),
    "comment": segment(0xFE, b"\xff\xfe\0" * 1000),
}


@pytest.mark.parametrize("fault", JPEG_SEGMENTS)
def test_a_broken_segment_costs_nothing(fault: str) -> None:
    whole = encoded(scene(40, 20), "JPEG")
    data = whole[:20] + JPEG_SEGMENTS[fault] + whole[20:]
    np.testing.assert_array_equal(decode(data), Image.open(io.BytesIO(whole)).convert("RGB"))


BOMB = zlib.compress(bytes(100_000_000), 9)
PNG_CHUNKS = {
    "long text": [(b"tEXt", b"Comment\0" + b"x" * 3_000_000)],
    "many long texts": [(b"tEXt", b"Comment\0" + b"x" * 900_000)] * 80,
    "long international text": [(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"x" * 3_000_000)],
    "compressed text": [(b"zTXt", b"Comment\0\0" + BOMB)],
    "compressed EXIF": [(b"zTXt", b"Raw profile type exif\0\0" + BOMB)],
    "broken compression": [(b"zTXt", b"Comment\0\0" + b"\xff" * 50), (b"iCCP", b"p\0\0" + b"\xff" * 50)],
    "profile bomb": [(b"iCCP", b"p\0\0" + BOMB)],
    "empty": [(b"iCCP", b""), (b"tEXt", b""), (b"pHYs", b"\1"), (b"gAMA", b""), (b"cHRM", b"\2"), (b"eXIf", b"")],
    "animation without frames": [(b"acTL", struct.pack(">II", 0, 0)), (b"fcTL", b"")],
}


@pytest.mark.parametrize("fault", PNG_CHUNKS)
def test_a_broken_chunk_costs_nothing(fault: str) -> None:
    header, *rest = png_chunks(encoded(scene(40, 20), "PNG"))
    np.testing.assert_array_equal(decode(png([header, *PNG_CHUNKS[fault], *rest])), scene(40, 20))


def test_exif_that_imagemagick_writes_as_text_is_applied() -> None:
    text = "\nexif\n 40\n" + exif(turned(6)).hex()
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", text, zip=True)
    assert decode(encoded(scene(40, 20), "PNG", pnginfo=info)).size == (20, 40)


@pytest.mark.parametrize(
    ("tag", "kind", "value"),
    [(282, 2, b"300\0"), (282, 5, b"\xff" * 4), (270, 2, b"\xff" * 4), (34675, 7, b"\xff" * 4)],
)
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_broken_tag_costs_nothing(tag: int, kind: int, value: bytes, compression: str | None) -> None:
    data = bytearray(encoded(scene(40, 20), "TIFF", dpi=(300, 300), description="x" * 50, compression=compression,
                             icc_profile=b"x" * 200))  # fmt: skip
    start = int.from_bytes(data[4:8], "little") + 2
    while int.from_bytes(data[start : start + 2], "little") != tag:
        start += 12
    data[start + 2 : start + 4], data[start + 8 : start + 12] = kind.to_bytes(2, "little"), value
    np.testing.assert_array_equal(decode(bytes(data)), scene(40, 20))


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"big_tiff": True}])
def test_a_tiff_is_turned(options: dict[str, object]) -> None:
    data = encoded(scene(40, 20), "TIFF", tiffinfo={ORIENTATION: 6}, **options)
    np.testing.assert_array_equal(decode(data), scene(40, 20).transpose(Image.Transpose.ROTATE_270))


def profile_with(edit: Callable[[bytearray], None]) -> bytes:
    """The profile of sRGB with changes."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    edit(data)
    return bytes(data)


def wide_gamut() -> bytes:
    """A profile whose red, green and blue are those of sRGB in another order, which shows in any picture."""

    def swap(data: bytearray) -> None:
        for number in range(int.from_bytes(data[128:132], "big")):
            entry = 132 + 12 * number
            name = bytes(data[entry : entry + 4])
            data[entry : entry + 4] = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}.get(name, name)

    return profile_with(swap)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_profile_is_applied(kind: str) -> None:
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    red = Image.new("RGB", (32, 32), (220, 10, 10))
    red.paste((10, 10, 200), (0, 0, 16, 32))
    data = encoded(red, kind, icc_profile=wide_gamut(), **options)
    np.testing.assert_allclose(np.asarray(decode(data))[16, 24], (10, 220, 10), atol=6)
    np.testing.assert_allclose(np.asarray(decode_shrunk(data, 6)[0])[3, 5], (10, 220, 10), atol=6)
    np.testing.assert_allclose(np.asarray(upright(Image.open(io.BytesIO(data))))[16, 24], (10, 220, 10), atol=6)


def grey_profile(gamma: float) -> bytes:
    """A profile of grey values with a power curve."""
    curve = struct.pack(">4sIIH2x", b"curv", 0, 1, round(gamma * 256))
    white = struct.pack(">4sI3i", b"XYZ ", 0, 63190, 65536, 54061)
    table = struct.pack(">I4sII4sII", 2, b"wtpt", 156, len(white), b"kTRC", 156 + len(white), len(curve))
    body = table + white + curve
    head = struct.pack(">I4sI4s4s4s12s4s", 128 + len(body), b"", 0x02100000, b"mntr", b"GRAY", b"XYZ ", b"", b"acsp")
    return (head + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)).ljust(128, b"\0") + body


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_grey_profile_is_applied_to_grey(mode: str) -> None:
    linear = encoded(Image.new(mode, (8, 8), 128 if mode == "L" else (128, 255)), "PNG", icc_profile=grey_profile(1.0))
    np.testing.assert_allclose(np.asarray(decode(linear)), 188, atol=1)
    usual = encoded(Image.new("RGB", (8, 8), (128, 90, 40)), "PNG", icc_profile=grey_profile(1.0))
    np.testing.assert_array_equal(np.asarray(decode(usual))[0, 0], (128, 90, 40))


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
IGNORED = {
    "sRGB": SRGB,
    "other space": LAB,
    "cut": SRGB[:200],
    "garbage": b"\xff" * 300,
    "long": SRGB + bytes(3_000_000),
}


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "P"])
@pytest.mark.parametrize("profile", IGNORED)
def test_a_profile_of_srgb_or_one_that_does_not_fit_changes_nothing(profile: str, mode: str) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    image = scene(40, 20).convert(mode)
    np.testing.assert_array_equal(
        decode(encoded(image, kind, icc_profile=IGNORED[profile])), decode(encoded(image, kind))
    )
