"""Differences of photos laid over each other: copies agree everywhere, other products differ somewhere."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from flows.delivery.near import DIFFERENT_LABELS, LIMIT
from pixels import BadPhoto
from pixels.overlay import difference, thumbnail
from tests.packshots import OUTLINES, encoded, packshot


def apart(one: Image.Image, other: Image.Image, *, quality: int = 90) -> float:
    return difference(thumbnail(encoded(one)), thumbnail(encoded(other, quality=quality)))


def cropped(image: Image.Image, left: float, right: float) -> Image.Image:
    return image.crop((round(left * image.width), 0, round((1 - right) * image.width), image.height))


@pytest.mark.parametrize("background", ["white", "grey", "gradient"])
@pytest.mark.parametrize("kind", OUTLINES)
@pytest.mark.parametrize("by", ["word", "colour"])
def test_siblings_differ_more_than_any_copy(kind: str, by: str, background: str) -> None:
    one = packshot(kind, 3, by=by, background=background, sway=0)
    copies = [
        apart(one, one, quality=50),
        apart(one, one.resize((150, 150))),
        apart(one, cropped(one, 0.02, 0.02)),
        apart(one, cropped(one, 0.03, 0)),
    ]
    siblings = [apart(one, packshot(kind, n, by=by, background=background, sway=0)) for n in range(10) if n != 3]
    assert max(copies) <= LIMIT < min(siblings)
    assert min(copies) <= LIMIT * DIFFERENT_LABELS


def test_a_transparent_packshot_lies_on_white() -> None:
    clear, white = (packshot("box", 0, background=name, sway=0) for name in ("transparent", "white"))
    assert apart(clear, white) < 0.3
    assert apart(clear, packshot("box", 1, background="transparent", sway=0)) > LIMIT


@pytest.mark.parametrize("side", [1, 8, 31, 64, 1000])
def test_photos_of_any_size_are_compared(side: int) -> None:
    random = np.random.default_rng(side)
    one, other = (Image.fromarray(random.integers(0, 256, (side, 2 * side, 3), dtype=np.uint8)) for _ in range(2))
    assert apart(one, one) == pytest.approx(0, abs=1e-6)
    assert apart(one, other) > 0.01
    assert apart(one, other.resize((333, 77))) >= 0


def test_plain_photos_differ_by_their_colour() -> None:
    grey, same, lighter = (Image.new("RGB", (300, 300), (level,) * 3) for level in (120, 121, 140))
    for image in (grey, same, lighter):
        image.paste((20, 20, 20), (0, 0, 300, 60))  # a picture of one colour is refused
    assert apart(grey, same) < 0.1
    assert apart(grey, lighter) > LIMIT


def test_a_broken_photo_has_no_thumbnail() -> None:
    with pytest.raises(BadPhoto):
        thumbnail(b"no photo")
