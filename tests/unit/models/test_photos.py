"""Photos as batches and their random views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.data import machine
from models.data.augment import draw_views, random_view, whole_view
from models.data.manifest import read_manifest
from models.data.photos import Photos
from models.recipe.config import Augment
from pixels import decode, to_square

NOTHING = Augment(zoom=0, rotate_deg=0, colour=0, flip=False, erase=0)


def draw(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def views(photos: Tensor, size: int, *, augment: Augment, generator: torch.Generator) -> Tensor:
    return random_view(photos, size, draw_views(len(photos), augment=augment, generator=generator))


@pytest.fixture
def photos() -> Tensor:
    return torch.randint(0, 256, (6, 40, 40, 3), dtype=torch.uint8, generator=draw(0))


def test_the_whole_view_is_torchs_antialiased_resize(photos: Tensor) -> None:
    pixels = photos.permute(0, 3, 1, 2) / 255
    assert torch.equal(whole_view(photos, 40), pixels)
    torch.testing.assert_close(
        whole_view(photos, 24), functional.interpolate(pixels, (24, 24), mode="bilinear", antialias=True)
    )


def test_no_augmentation_leaves_the_photo(photos: Tensor) -> None:
    view = views(photos, 40, augment=NOTHING, generator=draw())
    torch.testing.assert_close(view, whole_view(photos, 40), rtol=0, atol=2e-4)  # rounding of the grid


def test_flipping_gives_the_photo_or_its_mirror(photos: Tensor) -> None:
    view = views(photos, 40, augment=Augment(**vars(NOTHING) | {"flip": True}), generator=draw())
    plain = whole_view(photos, 40)
    mirrored = [float((v - p).abs().max()) > 0.1 for v, p in zip(view, plain, strict=True)]
    assert 0 < sum(mirrored) < 6
    expected = torch.stack([p.flip(2) if m else p for p, m in zip(plain, mirrored, strict=True)])
    torch.testing.assert_close(view, expected, rtol=0, atol=2e-4)


def test_erasing_is_one_grey_rectangle_of_10_to_40_percent(photos: Tensor) -> None:
    view = views(photos, 40, augment=Augment(**vars(NOTHING) | {"erase": 1.0}), generator=draw())
    for hole in (view == 0.5).all(1):
        rows, columns = hole.any(1).nonzero()[:, 0], hole.any(0).nonzero()[:, 0]
        assert hole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert 4 <= len(rows) <= 17
        assert 4 <= len(columns) <= 17


def test_views_stay_in_range_and_come_again_with_the_seed(photos: Tensor) -> None:
    wild = Augment(zoom=0.9, rotate_deg=180, colour=1.0, erase=0.5)
    view = views(photos, 24, augment=wild, generator=draw())
    assert view.shape == (6, 3, 24, 24)
    assert view.min() >= 0
    assert view.max() <= 1
    assert torch.equal(view, views(photos, 24, augment=wild, generator=draw()))
    assert not torch.equal(view, views(photos, 24, augment=wild, generator=draw(6)))


def test_a_worker_sees_its_part_of_the_batch_as_one_alone_would(photos: Tensor) -> None:
    drawn, part = draw_views(len(photos), augment=Augment(erase=1.0), generator=draw()), slice(2, 5)
    whole = random_view(photos, 24, drawn)
    torch.testing.assert_close(random_view(photos[part], 24, drawn[part]), whole[part], rtol=0, atol=1e-6)


def test_every_photo_has_a_view_of_its_own(photos: Tensor) -> None:
    same = photos[:1].expand(6, -1, -1, -1)
    view = views(same, 24, augment=Augment(), generator=draw())
    assert all(not torch.equal(view[0], other) for other in view[1:])


@pytest.mark.parametrize("room", [0, 2, 3])
def test_batches_are_the_rows_asked_for(data: Path, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is memory for none, two and all of three decoded photos."""
    monkeypatch.setattr(machine, "available_bytes", lambda: 2 * room * 24 * 24 * 3)
    manifest = read_manifest(data)
    rows = np.array([7, 0, 3])
    source = Photos(manifest, rows, side=24)
    expected = torch.from_numpy(np.stack([to_square(decode(manifest.read_photo(row)), 24) for row in rows]))
    for _ in range(2):  # decoded, then from memory if that is allowed
        found = torch.cat([batch.photos for batch in source.batches([np.array([2, 0]), np.array([1])])])
        assert torch.equal(found, expected[[2, 0, 1]])
    assert [len(batch) for batch in source.in_order(2)] == [2, 1]
    assert list(Photos(manifest, rows[:0], side=24).in_order(2)) == []


def test_beyond_the_photo_lies_its_reflection() -> None:
    white = torch.full((8, 40, 40, 3), 255, dtype=torch.uint8)
    turned = Augment(**vars(NOTHING) | {"rotate_deg": 45.0, "zoom": 0.2})
    torch.testing.assert_close(views(white, 40, augment=turned, generator=draw()), torch.ones(8, 3, 40, 40))
