"""Photos decoded at a lower resolution for training: close to the full decode, which serving uses, and upright."""

from __future__ import annotations

import io
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

import pixels
from models.data.decoder import resize
from pixels.reduced import decode_reduced

SIDE = 56
MEAN, MOST = 3.0, 40  # levels of 255 by which a photo full of detail may differ, on average and in a single value


def picture(width: int, height: int) -> Image.Image:
    """Noise of several sizes, so that no two corners are the same."""
    rng, values = np.random.default_rng(0), np.zeros((height, width, 3))
    for cells in (3, 12, 48, 100):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        values += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)) / cells**0.5
    return Image.fromarray((values * (255 / values.max())).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def squared(photo: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The photo as training sees it, and as serving does."""
    out = np.empty((SIDE, SIDE, 3), np.uint8)
    resize(decode_reduced(photo, SIDE), out)
    return out.astype(int), pixels.to_square(pixels.decode(photo), SIDE).astype(int)


@pytest.mark.parametrize(
    ("width", "height", "reduced"), [(112, 130, (56, 65)), (500, 500, (63, 63)), (300, 227, (75, 57))]
)
def test_the_smallest_reduction_by_a_power_of_two_that_suffices(
    width: int, height: int, reduced: tuple[int, int]
) -> None:
    photo = encoded(picture(width, height), quality=90)
    assert decode_reduced(photo, SIDE).shape == (*reduced[::-1], 3)
    found, expected = squared(photo)
    assert np.abs(found - expected).mean() < MEAN
    assert np.abs(found - expected).max() < MOST


def test_a_photo_that_is_not_much_larger_is_the_full_decode() -> None:
    photo = encoded(picture(100, 111), quality=90)
    assert np.array_equal(decode_reduced(photo, SIDE), np.asarray(pixels.decode(photo)))
    found, expected = squared(photo)
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_rotation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    found, expected = squared(encoded(picture(300, 240), quality=90, exif=exif))
    assert np.abs(found - expected).mean() < MEAN


def profile_of(space: Literal["LAB", "sRGB"]) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()


@pytest.mark.parametrize(
    ("photo", "height"),
    [
        (encoded(picture(300, 240).convert("CMYK"), quality=90), 240),
        (encoded(picture(300, 240), "PNG"), 240),
        (encoded(picture(300, 240).convert("L"), quality=90), 60),
        (encoded(picture(300, 240), quality=90, progressive=True), 60),
        (encoded(picture(300, 240), quality=90, icc_profile=profile_of("sRGB")), 60),
        (encoded(picture(300, 240), quality=90, icc_profile=profile_of("LAB")), 60),  # of other colours: ignored
    ],
    ids=["cmyk", "png", "grey", "progressive", "srgb", "foreign profile"],
)  # fmt: skip
def test_only_plain_jpegs_are_reduced(photo: bytes, height: int) -> None:
    found = decode_reduced(photo, SIDE)
    assert found.shape[0] == height
    assert found.flags.writeable
    ours, expected = squared(photo)
    assert np.abs(ours - expected).mean() < MEAN


def test_a_profile_that_changes_colours_is_applied() -> None:
    """Red and green are exchanged in it."""
    profile = bytearray(profile_of("sRGB"))
    red, green = profile.find(b"rXYZ"), profile.find(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    photo = encoded(picture(300, 240), quality=90, icc_profile=bytes(profile))
    assert np.array_equal(decode_reduced(photo, SIDE), np.asarray(pixels.decode(photo)))
    assert not np.array_equal(decode_reduced(photo, SIDE), decode_reduced(encoded(picture(300, 240), quality=90), 240))


def test_damage_is_left_to_the_full_decoder() -> None:
    photo = encoded(picture(300, 240), quality=90)
    with pytest.raises(pixels.BadPhoto, match=r"cannot be decoded|not a picture"):
        decode_reduced(photo[:200], SIDE)
    padded = photo[:-2] + bytes(4) + photo[-2:]  # libjpeg warns, and the photo is accepted
    assert decode_reduced(padded, SIDE).shape == (240, 300, 3)
