"""Discriminants of embeddings, and heads without a part of the classes, against slow readings and on bad input."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.export import discriminant, struck
from models.export.discriminant import Rows, fit
from models.export.ood import DISCRIMINANT, SCORES
from models.export.passes import open_spool


def drawn(num_classes: int = 6, each: int = 15, *, seed: int = 0, width: int = 20) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    target = np.repeat(np.arange(num_classes), each)
    centres = 3 * np.random.default_rng(99).standard_normal((num_classes, width))
    stretch = np.linspace(0.2, 2, width)
    return (centres[target] + stretch * draw.standard_normal((len(target), width))).astype(np.float32), target


def test_they_are_log_densities_of_gaussians_with_one_covariance() -> None:
    embedding, target = drawn()
    fitted = fit(embedding, target, num_classes=6)
    assert fitted is not None
    unit = embedding.astype(np.float64) - embedding.mean(0)
    unit /= np.linalg.norm(unit, axis=1)[:, None]
    means = np.stack([unit[target == c].mean(0) for c in range(6)])
    covariance = sum(np.outer(u - means[t], u - means[t]) for u, t in zip(unit, target, strict=True)) / len(unit)
    shrunk = 0.5 * covariance / (np.trace(covariance) / 20) + 0.5 * np.eye(20)
    found = Rows(fitted)(torch.from_numpy(embedding)[None]).detach().numpy()
    for row in range(0, len(unit), 17):
        away = [-0.5 * (unit[row] - m) @ np.linalg.solve(shrunk, unit[row] - m) for m in means]
        own = 0.5 * unit[row] @ np.linalg.solve(shrunk, unit[row])  # equal for all classes
        assert found[row] == pytest.approx(np.array(away) + own, abs=1e-4)


def test_crops_are_averaged_before_the_largest_is_taken() -> None:
    embedding, target = drawn()
    fitted = fit(embedding, target, num_classes=6)
    assert fitted is not None
    crops = torch.from_numpy(embedding).unflatten(0, (3, -1))
    rows = Rows(fitted)
    torch.testing.assert_close(
        rows(crops), torch.stack([rows(crop[None]) for crop in crops]).mean(0), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("fault", ["a class without photos", "constant", "NaN", "one photo a class"])
def test_what_cannot_be_fitted_is_not(fault: str) -> None:
    embedding, target = drawn()
    if fault == "constant":
        embedding[:] = 1
    if fault == "NaN":
        embedding[3, 2] = np.nan
    if fault == "one photo a class":
        embedding, target = drawn(each=1)
    assert fit(embedding, target, num_classes=7 if fault == "a class without photos" else 6) is None


def test_a_class_with_one_photo_is_fitted() -> None:
    embedding, target = drawn()
    kept = (target > 0) | (np.arange(len(target)) == 0)
    fitted = fit(embedding[kept], target[kept], num_classes=6)
    assert fitted is not None
    assert np.isfinite(fitted.rows).all()


def shown(seed: int, *, num_classes: int = 12, each: int = 12) -> struck.Shown:
    features, target = drawn(num_classes, each, seed=seed)
    return struck.Shown([torch.from_numpy(features), torch.from_numpy(features[:, ::-1].copy())], target)


def test_struck_classes_are_separated_from_photos_of_the_others() -> None:
    found = struck.separations(shown(0), shown(1, each=3), torch.full((2, 1, 1), 0.5), [1.0, 2.0])
    assert found is not None
    assert found.shape == (len(SCORES),)
    assert found[SCORES.index(DISCRIMINANT)] > 0.9
    assert struck.separations(shown(0), shown(1, each=3), torch.full((2, 1, 1), 0.5), [1.0, 2.0]) == pytest.approx(
        found
    )


def test_no_photo_of_a_struck_class_is_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[int]] = []
    judge = struck.Judge.__init__

    def recording(self: struck.Judge, train: struck.Shown, classes: np.ndarray, *rest: Any) -> None:
        seen.append(set(train.target))
        assert set(train.target) == set(classes)
        judge(self, train, classes, *rest)

    monkeypatch.setattr(struck.Judge, "__init__", recording)
    struck.separations(shown(0), shown(1, each=3), torch.full((2, 1, 1), 0.5), [1.0, 1.0])
    assert len(seen) == struck.FOLDS
    assert set.intersection(*seen) == set(), "each class is struck once"
    assert set.union(*seen) == set(range(12))


@pytest.mark.parametrize("fault", ["few classes", "no selection photos", "one photo a class", "constant", "NaN"])
def test_bad_input_makes_no_figure_up(fault: str) -> None:
    train, selected = shown(0), shown(1, each=3)
    if fault == "few classes":
        train = train.select(train.target < 2)
    if fault == "no selection photos":
        selected = selected.select(np.zeros(len(selected.target), bool))
    if fault == "one photo a class":
        train = shown(0, each=1)
    if fault in ("constant", "NaN"):
        train = struck.Shown(
            [torch.full_like(each, 1.0 if fault == "constant" else torch.nan) for each in train.features], train.target
        )
    found = struck.separations(train, selected, torch.full((2, 1, 1), 0.5), [1.0, 1.0])
    if fault in ("few classes", "no selection photos"):
        assert found is None
    else:
        assert found is not None
        assert np.isnan(found[SCORES.index(DISCRIMINANT)])


def test_classes_that_take_part_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(struck, "CLASSES", 5)
    train, selected = np.array([0, 0, 1, 2, 3, 4, 5, 6, 8]), np.array([6, 2, 1, 8])
    assert set(struck.chosen_classes(train, selected)) >= {1, 2, 6, 8}
    assert len(struck.chosen_classes(train, selected)) == 5
    assert 7 not in struck.chosen_classes(train, selected), "it has no training photo"


def test_a_file_is_fitted_like_the_array_that_it_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(discriminant, "BLOCK", 7)
    embedding, target = drawn()
    with open_spool(20, tmp_path) as spool:
        for part in torch.from_numpy(embedding).split(8):
            spool.add(part)
        np.testing.assert_array_equal(spool[3:12], embedding[3:12])
        assert len(spool) == len(embedding)
        assert spool[85:200].shape == (5, 20)
        assert list(tmp_path.iterdir()) == [], "a killed calibration leaves no file"
        whole, waited = fit(embedding, target, num_classes=6), fit(spool, target, num_classes=6)
    assert whole is not None
    assert waited is not None
    for name, array in vars(whole).items():
        np.testing.assert_array_equal(array, getattr(waited, name))


def test_memory_is_that_of_the_classes_and_not_of_the_photos(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(discriminant, "BLOCK", 256)
    peaks = []
    for num in (1_000, 20_000):
        draw = torch.Generator().manual_seed(0)
        with open_spool(64, tmp_path) as spool:
            for _ in range(num // 1_000):
                spool.add(torch.randn(1_000, 64, generator=draw))
            tracemalloc.start()
            fitted = fit(spool, np.arange(num) % 100, num_classes=100)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert fitted is not None
    assert peaks[1] < peaks[0] + 20_000 * 8 * 3, "a few numbers per photo, of its class"
    assert peaks[1] < 20_000 * 64 * 4 / 4, "a quarter of the embeddings"


def test_blocks_do_not_change_the_covariance(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit(*drawn(), num_classes=6)
    monkeypatch.setattr(discriminant, "BLOCK", 7)
    parts = fit(*drawn(), num_classes=6)
    assert whole is not None
    assert parts is not None
    np.testing.assert_allclose(parts.rows, whole.rows, atol=1e-5)
