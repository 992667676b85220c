"""Pictures with deep, signed or transparent samples keep their content; those that lose it are refused."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pixels import BadPhoto, decode, decode_shrunk
from pixels.png import PASSES
from tests.unit.test_damage import png, png_chunks
from tests.unit.test_pixels import encoded, scene

LEVELS = np.arange(256).reshape(8, 32)  # every level of grey once
BITS, FORMAT, PHOTOMETRIC, LOWEST, HIGHEST, LEAST, MOST = 258, 339, 262, 280, 281, 340, 341


def grey(data: bytes) -> np.ndarray:
    """The decoded picture (h, w) as int, after checking that it is grey."""
    pixels = np.asarray(decode(data)).astype(int)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def deep(values: np.ndarray, kind: str = "TIFF", **options: object) -> bytes:
    return encoded(Image.fromarray(values), kind, **options)


def tiff(values: np.ndarray, tags: dict[int, int], *, order: str = "<") -> bytes:
    """An uncompressed grey TIFF with the given tags, each of type LONG or, if negative, SLONG."""
    height, width = values.shape
    raw = values.astype(values.dtype.newbyteorder(order)).tobytes()
    given = {256: width, 257: height, BITS: values.itemsize * 8, 259: 1, PHOTOMETRIC: 1, 273: 8, 277: 1, 278: height,
             279: len(raw)} | tags  # fmt: skip
    entries = [struct.pack(order + ("HHII" if value >= 0 else "HHIi"), tag, 4 if value >= 0 else 9, 1, value)
               for tag, value in sorted(given.items())]  # fmt: skip
    start = b"II*\0" if order == "<" else b"MM\0*"
    return (start + struct.pack(order + "I", 8 + len(raw)) + raw
            + struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4))  # fmt: skip


@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_fewer_bits_than_16_fill_the_range(bits: int, kind: str) -> None:
    values = np.rint(LEVELS / 255 * (2**bits - 1)).astype(np.uint16)
    np.testing.assert_allclose(grey(deep(values, kind)), LEVELS, atol=1)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("is_interlaced", [False, True])
def test_fewer_bits_than_16_in_colour(bits: int, channels: int, is_interlaced: bool) -> None:
    bands = [LEVELS, LEVELS[::-1], LEVELS[:, ::-1]] if channels > 2 else [LEVELS]
    colours = np.stack([*bands, np.full_like(LEVELS, 255)], axis=-1)[..., :channels]
    values = np.rint(colours / 255 * (2**bits - 1)).astype(">u2")
    header = struct.pack(">IIBBBBB", 32, 8, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, is_interlaced)
    passes = PASSES if is_interlaced else ((0, 0, 1, 1),)
    rows = b"".join(b"\0" + row.tobytes() for x, y, across, down in passes for row in values[y::down, x::across])
    data = png([(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])
    expected = np.broadcast_to(colours[..., : len(bands)], (8, 32, 3))
    np.testing.assert_allclose(np.asarray(decode(data)).astype(int), expected, atol=1)


@pytest.mark.parametrize("bits", [10, 12])
def test_grey_with_an_alpha_of_fewer_bits_than_16(bits: int) -> None:
    values = np.rint(np.stack([LEVELS, np.flip(LEVELS)], axis=-1) / 255 * (2**bits - 1)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 32, 8, 16, 4, 0, 0, 0)
    data = png([(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])
    np.testing.assert_allclose(grey(data), 255 - (255 - LEVELS) ** 2 / 255, atol=2)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("span", [(0, 1), (0, 1.04), (0, 255), (0, 1023), (0, 65535), (-1, 1)])
def test_floats_of_any_range(span: tuple[float, float], order: str) -> None:
    values = (span[0] + LEVELS / 255 * (span[1] - span[0])).astype(np.float32)
    expected = LEVELS if span[1] != 1.04 else np.minimum(LEVELS * 1.04, 255)
    np.testing.assert_allclose(grey(tiff(values, {FORMAT: 3}, order=order)), expected, atol=1)


def test_a_float_that_is_no_number_is_black() -> None:
    values = (LEVELS / 255).astype(np.float32)
    values[0, 0], values[3, 3] = np.nan, np.inf
    found = grey(deep(values))
    assert found[3, 3] <= 1 >= found[0, 0]
    np.testing.assert_allclose(found[4:], LEVELS[4:], atol=1)
    with pytest.raises(BadPhoto, match="nan to nan"):
        decode(deep(np.full((8, 8), np.nan, np.float32)))


def test_a_bright_pixel_does_not_turn_the_others_black_in_silence() -> None:
    levels = np.tile(LEVELS, (4, 4))
    values = (levels / 255).astype(np.float32)
    values[0, 0] = 1e6
    np.testing.assert_allclose(grey(deep(values))[1:], levels[1:], atol=1)
    hot = levels.astype(np.uint16)
    hot[0, 0] = 65535
    with pytest.raises(BadPhoto, match="come out as nearly one colour"):
        decode(deep(hot))


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int8])
def test_signed_samples_with_negative_values(dtype: type) -> None:
    limits = np.iinfo(dtype)
    values = np.linspace(limits.min, limits.max, 256).astype(dtype).reshape(8, 32)
    np.testing.assert_allclose(grey(tiff(values, {FORMAT: 2})), LEVELS, atol=1)


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_signed_samples_without_negative_values(dtype: type) -> None:
    np.testing.assert_array_equal(grey(tiff(LEVELS.astype(dtype), {FORMAT: 2})), LEVELS)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32])
@pytest.mark.parametrize("share", [1, 0.6, 0.3])
@pytest.mark.parametrize("order", ["<", ">"])
def test_signed_samples_that_fill_their_range(dtype: type, share: float, order: str) -> None:
    """Black and white are the ends of the range, even if no pixel is black or white."""
    limits, step = np.iinfo(dtype), 3 if dtype == np.int8 else 1
    values = (np.linspace(limits.min, limits.max, 256) * share).astype(dtype).reshape(8, 32)
    np.testing.assert_allclose(
        grey(tiff(values, {FORMAT: 2}, order=order)), 127.5 + (LEVELS - 127.5) * share, atol=step
    )
    bright = (np.linspace(0, limits.max, 256) * max(share, 0.55)).astype(dtype).reshape(8, 32)
    expected = LEVELS * max(share, 0.55)
    np.testing.assert_allclose(grey(tiff(bright, {FORMAT: 2}, order=order)), expected, atol=step)


def test_signed_samples_that_fill_little_of_their_range() -> None:
    values = (LEVELS * 8 - 1024).astype(np.int16)
    np.testing.assert_allclose(grey(tiff(values, {FORMAT: 2})), LEVELS, atol=1)


@pytest.mark.parametrize(
    ("span", "found"),
    [((-0.9, 0.8), (13, 230)), ((-0.5, 0.5), (64, 191)), ((-0.1, 0.1), (115, 140)), ((-0.05, 1), (0, 255)),
     ((-0.05, 0.8), (0, 204)), ((-1.04, 1.04), (0, 255)), ((-40, 60), (0, 255))],
)  # fmt: skip
def test_floats_with_negative_values(span: tuple[float, float], found: tuple[int, int]) -> None:
    """Floats reach from -1 to 1 if they fill that, and values slightly below zero come from resizing."""
    values = (span[0] + LEVELS / 255 * (span[1] - span[0])).astype(np.float32)
    levels = grey(tiff(values, {FORMAT: 3}))
    assert (levels.min(), levels.max()) == pytest.approx(found, abs=1)


def test_32_unsigned_bits_that_fill_their_range() -> None:
    values = np.rint(LEVELS / 255 * 0.5 * (2**32 - 1)).astype(np.uint32)
    np.testing.assert_allclose(grey(tiff(values, {FORMAT: 1})), LEVELS / 2, atol=1)
    np.testing.assert_allclose(grey(tiff(LEVELS.astype(np.uint32) * 1000, {FORMAT: 1})), LEVELS, atol=1)


def test_32_unsigned_bits() -> None:
    values = np.rint(LEVELS / 255 * (2**32 - 1)).astype(np.uint32)
    np.testing.assert_allclose(grey(tiff(values, {FORMAT: 1})), LEVELS, atol=1)


def test_the_range_that_the_file_declares_counts() -> None:
    dim = (LEVELS * 16).astype(np.uint16)  # at most 4080: 12 bits by its values
    np.testing.assert_allclose(grey(tiff(dim, {HIGHEST: 16383})), LEVELS / 4, atol=1)
    np.testing.assert_allclose(grey(tiff(dim, {LEAST: 0, MOST: 8191, FORMAT: 1})), LEVELS / 2, atol=1)
    np.testing.assert_allclose(grey(tiff(dim, {HIGHEST: 65535})), LEVELS, atol=1)  # not the range of these values
    np.testing.assert_allclose(grey(tiff(dim, {HIGHEST: 9})), LEVELS, atol=1)


@pytest.mark.parametrize(("bits", "share"), [(16, 1 / 4), (14, 1), (10, 1)])
def test_the_significant_bits_of_a_png_count(bits: int, share: float) -> None:
    header, *rest = png_chunks(deep(np.rint(LEVELS / 255 * 16383).astype(np.uint16), "PNG"))
    data = png([header, (b"sBIT", bytes([bits])), *rest])
    np.testing.assert_allclose(grey(data), LEVELS * share, atol=1)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_in_which_white_is_zero(dtype: type, order: str) -> None:
    values = (LEVELS * (257 if dtype == np.uint16 else 1)).astype(dtype)
    np.testing.assert_array_equal(grey(tiff(values, {PHOTOMETRIC: 0}, order=order)), 255 - LEVELS)


def test_one_bit_in_which_white_is_zero() -> None:
    data = encoded(Image.fromarray(LEVELS > 99), "TIFF", compression="group4", tiffinfo={PHOTOMETRIC: 0})
    assert grey(data).max() == 255
    assert set(np.unique(grey(data))) == {0, 255}


def test_samples_that_cannot_be_read_are_named() -> None:
    for kind in (np.float64, np.float16):
        bits = np.dtype(kind).itemsize * 8
        with pytest.raises(
            BadPhoto, match=rf"a TIFF that cannot be read \({bits} bits a sample, float\); save it as PNG"
        ):
            decode(tiff(LEVELS.astype(kind), {FORMAT: 3}))
    deeper = bytearray(encoded(scene(40, 20), "JPEG"))
    deeper[deeper.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(BadPhoto, match="a JPEG with 12 bits a sample, which cannot be read; save it with 8"):
        decode(bytes(deeper))


def test_lab_is_converted() -> None:
    lab = Image.new("LAB", (8, 8), (128, 128, 128))
    np.testing.assert_allclose(np.asarray(decode(encoded(lab, "TIFF"))), 119, atol=2)


def test_values_far_from_black_and_white_are_refused() -> None:
    with pytest.raises(BadPhoto, match="30000 to 30255, come out as nearly one colour"):
        decode(deep((30_000 + LEVELS).astype(np.uint16)))


def test_an_adobe_cmyk_jpeg_is_not_inverted() -> None:
    data = encoded(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG")
    assert b"Adobe" in data
    assert np.asarray(decode(data)).min() == 255


def bmp_without_alpha() -> bytes:
    """A BMP of 32 bits whose masks name an alpha channel that is zero everywhere."""
    rgba = scene(40, 20).convert("RGBA")
    rgba.putalpha(0)
    raw = rgba.transpose(Image.Transpose.FLIP_TOP_BOTTOM).tobytes("raw", "BGRA")
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 40, 20, 1, 32, 3, len(raw), 0, 0, 0, 0) + masks + bytes(108 - 56)
    return struct.pack("<2sIII", b"BM", 122 + len(raw), 0, 122) + header + raw


@pytest.mark.parametrize("kind", ["BMP", "PNG", "TIFF", "WEBP"])
def test_alpha_of_zero_everywhere_is_ignored(kind: str) -> None:
    rgba = scene(40, 20).convert("RGBA")
    rgba.putalpha(0)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = bmp_without_alpha() if kind == "BMP" else encoded(rgba, kind, **options)
    assert "A" in Image.open(io.BytesIO(data)).mode
    np.testing.assert_array_equal(decode(data), scene(40, 20))
    np.testing.assert_array_equal(decode(data), rgba.convert("RGB"))


@pytest.mark.parametrize("mode", ["LA", "P"])
def test_alpha_of_zero_everywhere_in_grey_and_palettes(mode: str) -> None:
    image = scene(40, 20).convert("LA") if mode == "LA" else scene(40, 20).quantize(16)
    if mode == "LA":
        image.putalpha(0)
    data = encoded(image, "PNG", **({"transparency": bytes(16)} if mode == "P" else {}))
    np.testing.assert_array_equal(decode(data), image.convert("RGB"))


def test_a_picture_that_is_transparent_nearly_everywhere_is_refused() -> None:
    rgba = scene(40, 20).convert("RGBA")
    rgba.putalpha(Image.new("L", (40, 20), 1))
    with pytest.raises(BadPhoto, match="transparent nearly everywhere"):
        decode(encoded(rgba, "PNG"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("colour", ["white", "black", (120, 130, 140)])
def test_a_blank_photo_is_refused_where_photos_are_taken_in(kind: str, colour: object) -> None:
    data = encoded(Image.new("RGB", (64, 48), colour), kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert decode(data).size == (64, 48)
    with pytest.raises(BadPhoto, match="blank: all of it has one colour"):
        decode_shrunk(data, 6)


def test_a_jpeg_with_fine_detail_only_is_not_blank() -> None:
    checks = np.indices((64, 64)).sum(0) % 2 * 200
    assert decode_shrunk(deep(checks.astype(np.uint8), "JPEG", quality=95), 6)[1] == (64, 64)
