"""Blur, hue, holes and flips of views."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from models.data.augment import Draw, draw_views, random_view, whole_view
from models.recipe.config import Augment

NOTHING = Augment(zoom=0, rotate_deg=0, colour=0, flip=False, erase=0)
CLOSE = {"rtol": 0, "atol": 3e-4}  # rounding of the grid


def drawn(n: int = 6, **keys: float) -> Draw:
    augment = dataclasses.replace(NOTHING, **keys)  # type: ignore[arg-type]  # keys of Augment
    return draw_views(n, augment=augment, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def photos() -> Tensor:
    """Photos with medium colours, so that none is clipped at black or white."""
    return torch.randint(100, 156, (6, 40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_what_is_off_changes_no_draw_of_the_rest() -> None:
    plain, more = drawn(colour=0.3, erase=0.5), drawn(colour=0.3, erase=0.5, hue_deg=20.0, blur=0.5)
    for name in ("theta", "factors", "extent", "start"):
        assert torch.equal(getattr(plain, name), getattr(more, name))


def test_photos_may_stand_on_their_heads(photos: Tensor) -> None:
    view, plain = random_view(photos, 40, drawn(flip_vertical=True)), whole_view(photos, 40)
    turned = [bool((v - p).abs().max() > 0.1) for v, p in zip(view, plain, strict=True)]
    assert 0 < sum(turned) < 6
    expected = torch.stack([p.flip(1) if t else p for p, t in zip(plain, turned, strict=True)])
    torch.testing.assert_close(view, expected, **CLOSE)


def slow_blur(photo: Tensor, width_px: float) -> Tensor:
    """Gaussian blur of a photo (3, S, S), pixel by pixel."""
    size = photo.shape[-1]
    position = torch.arange(size, dtype=torch.float64)
    blurred = torch.empty_like(photo, dtype=torch.float64)
    for row in range(size):
        for column in range(size):
            square = (position[:, None] - row) ** 2 + (position[None] - column) ** 2
            weight = torch.exp(-square / (2 * width_px**2))
            blurred[:, row, column] = (photo.double() * weight).sum((1, 2)) / weight.sum()
    return blurred


def test_blur_is_gaussian(photos: Tensor) -> None:
    draw, plain = drawn(2, blur=1.0), whole_view(photos[:2], 40)
    assert bool((draw.blur > 0).all())
    draw.blur[:] = torch.tensor([0.03, 0.008])
    for view, photo, share in zip(random_view(photos[:2], 40, draw), plain, draw.blur, strict=True):
        torch.testing.assert_close(view.double(), slow_blur(photo, float(share) * 40), **CLOSE)


def test_a_share_is_blurred_and_the_others_are_left() -> None:
    photos = torch.randint(0, 256, (200, 80, 80, 3), dtype=torch.uint8)
    draw = drawn(200, blur=0.25)
    view, plain = random_view(photos, 80, draw), random_view(photos, 80, drawn(200))
    changed, visible = (view != plain).flatten(1).any(1), draw.blur * 80 > 0.25
    assert not changed[draw.blur == 0].any()
    assert changed[visible].all()
    assert 35 < int((draw.blur > 0).sum()) < 65
    assert 0.009 < float(draw.blur.max()) <= 0.01
    rough = [(each[:, :, 1:] - each[:, :, :-1])[visible].abs().mean() for each in (view, plain)]
    assert rough[0] < rough[1]


def test_blur_and_hue_leave_an_even_grey() -> None:
    grey = torch.full((5, 24, 24, 3), 90, dtype=torch.uint8)
    torch.testing.assert_close(random_view(grey, 24, drawn(5, blur=1.0, hue_deg=180.0)), whole_view(grey, 24), **CLOSE)


def turned(photos: Tensor, degrees: float) -> Tensor:
    draw = drawn(len(photos))
    return random_view(photos, 40, dataclasses.replace(draw, hue=torch.full_like(draw.hue, math.radians(degrees))))


def test_a_third_of_a_turn_makes_red_green(photos: Tensor) -> None:
    plain = whole_view(photos, 40)
    torch.testing.assert_close(turned(photos, 120), plain[:, [2, 0, 1]], **CLOSE)
    torch.testing.assert_close(turned(photos, -120), plain[:, [1, 2, 0]], **CLOSE)
    torch.testing.assert_close(turned(photos, 40).mean(1), plain.mean(1), **CLOSE)
    distance = [(each - each.mean(1, keepdim=True)).norm(dim=1) for each in (turned(photos, 40), plain)]
    torch.testing.assert_close(*distance, **CLOSE)


def test_hues_stay_within_their_degrees() -> None:
    hue = drawn(500, hue_deg=30.0).hue.rad2deg()
    assert float(hue.abs().max()) <= 30
    assert float(hue.min()) < -20
    assert float(hue.max()) > 20
    assert not drawn(500).hue.any()


@pytest.mark.parametrize("holes", [1, 4, 9])
def test_holes_are_many_and_together_about_as_large_as_one(holes: int) -> None:
    white = torch.full((300, 40, 40, 3), 255, dtype=torch.uint8)
    draw = drawn(300, erase=1.0, holes=holes)
    assert draw.extent.shape == (300, holes, 2)
    assert draw.extent.min() >= 0.1 / math.sqrt(holes)
    assert draw.extent.max() <= 0.4 / math.sqrt(holes)
    assert bool((draw.start + draw.extent <= 1).all())
    area = float((draw.extent[..., 0] * draw.extent[..., 1]).sum(1).mean())
    assert area == pytest.approx(0.0625, rel=0.1)
    view = random_view(white, 40, draw)
    hole = (view == 0.5).all(1)
    position = (torch.arange(40) + 0.5) / 40
    expected = torch.zeros_like(hole)
    for photo in range(300):
        for start, extent in zip(draw.start[photo], draw.extent[photo], strict=True):
            rows, columns = ((position >= start[i]) & (position < start[i] + extent[i]) for i in (0, 1))
            expected[photo] |= rows[:, None] & columns
    assert torch.equal(hole, expected)
