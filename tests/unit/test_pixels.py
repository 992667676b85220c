"""The decoder, on every kind of file that a supplier may send; each is a real file made here."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from pixels import MAX_PIXELS, BadPhoto, decode, decode_shrunk, shrunk, to_square

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
ORIENTATION = 0x0112


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> np.ndarray:
    """The decoded pixels (h, w, 3) as int, after checking that they are plain RGB."""
    image = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def png_without_pixels(width: int, height: int) -> bytes:
    """A PNG whose header gives a size, and which ends before its pixels: decoding finds it truncated."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1000) + b"IDAT"


def quadrants() -> Image.Image:
    """A 32 x 16 picture of flat blocks, which JPEG preserves: red and green above blue and white."""
    image = Image.new("RGB", (32, 16))
    for colour, corner in zip((RED, GREEN, BLUE, WHITE), ((0, 0), (16, 0), (0, 8), (16, 8)), strict=True):
        image.paste(colour, (*corner, corner[0] + 16, corner[1] + 8))
    return image


def corners(pixels: np.ndarray) -> list[tuple[int, ...]]:
    """Colours at the top left, top right, bottom left and bottom right."""
    return [tuple(pixels[y, x]) for y in (1, -2) for x in (1, -2)]


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(BadPhoto, match="empty"):
        decode(b"")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_every_format_is_read_and_refused_when_truncated(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), kind)
    assert decoded(whole).shape == (64, 64, 3)
    with pytest.raises(BadPhoto):
        decode(whole[: len(whole) // 2])


@pytest.mark.parametrize("data", [b"Photo not available", b"\x00" * 500, b"\xff\xd8\xff", b"%PDF-1.7\n"])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(BadPhoto):
        decode(data)


def test_formats_that_run_programs_are_refused_by_name() -> None:
    with pytest.raises(BadPhoto, match=r"format that can be read \(JPEG, PNG"):
        decode(encoded(Image.new("RGB", (8, 8)), "EPS"))


@pytest.mark.parametrize(
    ("value", "expected"), [(0, 0), (128, 0), (129, 1), (200, 1), (257 * 100, 100), (65535 - 257, 254), (65535, 255)]
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_rounded(kind: str, value: int, expected: int) -> None:
    values = np.full((4, 5), value, dtype=np.uint16)
    values[2:] = [[0], [65535]]  # all 16 bits are used
    assert (decoded(encoded(Image.fromarray(values), kind))[:2] == expected).all()


@pytest.mark.parametrize(("values", "expected"), [([0, 100, 255], [0, 100, 255]), ([0, 25700, 65535], [0, 100, 255])])
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_wide_modes_without_a_range_are_taken_by_their_values(
    dtype: type, values: list[int], expected: list[int]
) -> None:
    data = encoded(Image.fromarray(np.array([values], dtype=dtype)), "TIFF")
    assert decoded(data)[0, :, 0].tolist() == expected


def test_cmyk_jpeg() -> None:
    data = encoded(quadrants().convert("CMYK"), "JPEG", quality=95)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    np.testing.assert_allclose(corners(decoded(data)), [RED, GREEN, BLUE, WHITE], atol=4)


def test_palette_with_transparency_lies_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putdata([0, 1])
    assert decoded(encoded(image, "PNG", transparency=0)).tolist() == [[[*WHITE], [*BLUE]]]


@pytest.mark.parametrize(("mode", "key"), [("RGB", (10, 20, 30)), ("L", 40)])
def test_a_transparent_colour_lies_on_white(mode: str, key: tuple[int, int, int] | int) -> None:
    image = Image.new(mode, (2, 1), key)
    image.putpixel((1, 0), RED if mode == "RGB" else 90)
    other = [*RED] if mode == "RGB" else [90, 90, 90]
    assert decoded(encoded(image, "PNG", transparency=key)).tolist() == [[[*WHITE], other]]


def test_alpha_is_blended_with_white() -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 128)])
    assert decoded(encoded(image, "PNG")).tolist() == [[[*RED], [*WHITE], [127, 127, 127]]]


def test_grey_with_alpha() -> None:
    image = Image.new("LA", (3, 1))
    image.putdata([(60, 255), (60, 0), (0, 128)])
    assert decoded(encoded(image, "PNG")).tolist() == [[[60] * 3, [255] * 3, [127] * 3]]


def test_one_bit() -> None:
    image = Image.fromarray(np.array([[True, False, True]]))
    assert image.mode == "1"
    assert decoded(encoded(image, "PNG"))[0, :, 0].tolist() == [255, 0, 255]


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in (RED, GREEN, BLUE)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=40)
    assert Image.open(io.BytesIO(data)).n_frames == 3  # type: ignore[attr-defined]
    pixels = decoded(data)
    assert pixels.shape == (6, 8, 3)
    assert (pixels == RED).all()


@pytest.mark.parametrize(
    ("orientation", "size", "expected"),
    [
        (1, (32, 16), [RED, GREEN, BLUE, WHITE]),
        (3, (32, 16), [WHITE, BLUE, GREEN, RED]),
        (6, (16, 32), [BLUE, RED, WHITE, GREEN]),
        (8, (16, 32), [GREEN, WHITE, RED, BLUE]),
        (99, (32, 16), [RED, GREEN, BLUE, WHITE]),
    ],
)
def test_exif_rotation_is_applied(orientation: int, size: tuple[int, int], expected: list[tuple[int, ...]]) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = decode(encoded(quadrants(), "JPEG", quality=95, subsampling=0, exif=exif))
    assert image.size == size
    np.testing.assert_allclose(corners(np.asarray(image).astype(int)), expected, atol=4)
    assert ORIENTATION not in image.getexif() or orientation in (1, 99)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")  # Pillow says so; the photo itself is whole
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"])
def test_broken_exif_does_not_cost_the_photo(exif: bytes) -> None:
    data = encoded(quadrants(), "JPEG", quality=95, subsampling=0, exif=exif)
    np.testing.assert_allclose(corners(decoded(data)), [RED, GREEN, BLUE, WHITE], atol=4)


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (10_000, 10_000), (8_001, 8_000)])
def test_a_decompression_bomb_is_refused_by_its_header(width: int, height: int) -> None:
    with pytest.raises(BadPhoto, match="64,000,000"):
        decode(png_without_pixels(width, height))


def test_the_limit_itself_is_not_over_it() -> None:
    assert MAX_PIXELS == 8_000 * 8_000
    with pytest.raises(BadPhoto, match="it ends early"):  # the size is accepted, but there are no pixels
        decode(png_without_pixels(8_000, 8_000))


def test_to_square_squeezes_and_averages() -> None:
    stripes = np.zeros((64, 128, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    square = to_square(Image.fromarray(stripes), 16)
    assert square.shape == (16, 16, 3)
    assert square.dtype == np.uint8
    difference = np.abs(square[:, 1:-1].astype(int) - 100)
    assert difference.max() <= 2, "nearest or plain bilinear sampling would give 0 or 200"


def test_to_square_leaves_a_square_of_that_size_alone() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(to_square(Image.fromarray(pixels), 16), pixels)


def scene(width: int, height: int) -> Image.Image:
    """Patches of colour with fine grain, as a shelf has."""
    random = np.random.default_rng(3)
    patches = Image.fromarray(random.integers(0, 256, (9, 7, 3), dtype=np.uint8)).resize((width, height))
    grain = random.integers(-30, 31, (height, width, 3))
    return Image.fromarray((np.asarray(patches).astype(int) + grain).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_photo_that_will_be_shrunk_is_decoded_at_a_lower_resolution(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(scene(1601, 1203), kind, exif=exif)
    small, whole = decode(data, side=96), decode(data)
    assert (small.width < whole.width / 3) == (kind == "JPEG")
    for image in (small, whole):
        image.thumbnail((96, 96))
    assert small.size == whole.size
    assert np.abs(np.asarray(small).astype(int) - np.asarray(whole)).mean() < 2


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
@pytest.mark.parametrize("size", [(5, 3), (72, 72), (143, 145), (348, 348), (301, 517), (1200, 90), (1601, 1203)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_shrinks_to_the_same_without_all_of_its_pixels(
    size: tuple[int, int], orientation: int, options: dict[str, object]
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(scene(*size), "JPEG", exif=exif, **options)
    image, size_found = decode_shrunk(data, 6)
    whole = decode(data)
    assert size_found == whole.size
    assert (image.mode, image.size) == ("RGB", (6, 6))
    apart = np.asarray(image).astype(int) - np.asarray(shrunk(whole, 6))
    assert np.sqrt((apart**2).mean()) < 1


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_other_formats_shrink_to_the_same(kind: str) -> None:
    data = encoded(scene(200, 150), kind)
    image, size_found = decode_shrunk(data, 6)
    assert size_found == (200, 150)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(shrunk(decode(data), 6)))


def test_a_grey_and_a_cmyk_jpeg_shrink_to_the_same() -> None:
    for mode in ("L", "CMYK"):
        data = encoded(scene(200, 150).convert(mode), "JPEG")
        apart = np.asarray(decode_shrunk(data, 6)[0]).astype(int) - np.asarray(shrunk(decode(data), 6))
        assert np.sqrt((apart**2).mean()) < 2


@pytest.mark.parametrize("size", [(348, 348), (301, 517), (1000, 1000)])
def test_a_photo_shrinks_to_the_same_at_half_its_size(size: tuple[int, int]) -> None:
    whole = scene(*size)
    half = whole.resize((size[0] // 2, size[1] // 2))
    apart = np.asarray(shrunk(half, 6)).astype(int) - np.asarray(shrunk(whole, 6))
    assert np.sqrt((apart**2).mean()) < 1


def accepts(decoder: Callable[[bytes], object], data: bytes) -> bool:
    try:
        decoder(data)
    except BadPhoto:
        return False
    return True


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, on what broken bytes seem to say
@pytest.mark.parametrize("progressive", [False, True])
def test_the_same_broken_photos_are_refused_when_shrunk(progressive: bool) -> None:
    whole = encoded(scene(160, 160), "JPEG", progressive=progressive)
    random = np.random.default_rng(4)
    refused = 0
    for number in range(150):
        broken = bytearray(whole)
        if number % 3 == 0:
            del broken[random.integers(len(whole)) :]
        elif number % 3 == 1:
            del broken[-random.integers(1, 40) :]
        else:
            for position in random.integers(0, len(whole), 3):
                broken[position] ^= 1 << random.integers(8)
        is_good = accepts(decode, bytes(broken))
        assert accepts(lambda data: decode_shrunk(data, 6), bytes(broken)) == is_good
        refused += not is_good
    assert 30 < refused < 150
