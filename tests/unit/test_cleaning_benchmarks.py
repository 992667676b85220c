"""Benchmarks of cleaning: they run, and their measures are correct."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import class_names
import cleaning
import find_errors
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from noisy import shelves
from noisy.photos import PhotoSet
from noisy.shelves import Shelf
from PIL import Image


def test_costs_are_measured_at_a_small_size(capsys: pytest.CaptureFixture[str]) -> None:
    cleaning.main(
        ["--rows", "3000", "--classes", "30", "--sparse-rows", "800", "--sparse-classes", "200", "--width", "8"]
    )
    lines = capsys.readouterr().out.splitlines()
    figures = {line["figure"]: line for line in map(json.loads, filter(lambda line: line.startswith("{"), lines))}
    found = figures["dense 3,000 x 30, log margin, labels called wrong"]["value"]
    assert 0.1 * 3000 < found < 0.3 * 3000, "a fifth is wrong"
    assert all(line["met"] for name, line in figures.items() if "GB beyond" in name and name.startswith("sparse"))


def test_a_large_allocation_is_counted() -> None:
    cost = cleaning.measure(lambda: np.ones(1_000_000, np.float64) > 0)
    assert cost.peak_bytes == pytest.approx(9e6, rel=0.05)
    assert cost.found == 1_000_000


def test_f1_follows_its_definition() -> None:
    draw = np.random.default_rng(0)
    suspicion, wrong = draw.random(60), draw.random(60) < 0.4
    flagged = suspicion > 0.5
    precision, recall = (flagged & wrong).sum() / flagged.sum(), (flagged & wrong).sum() / wrong.sum()
    assert find_errors.f1(flagged, wrong) == pytest.approx(200 * precision * recall / (precision + recall))


def test_probabilities_are_of_heads_that_did_not_see_the_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = next(shelves.drawn())
    trained_on: list[np.ndarray] = []
    trained = find_errors.trained

    def recording(shelf: Shelf, encoder: shelves.Views, rows: np.ndarray, *, seed: int) -> find_errors.Head:
        trained_on.append(rows)
        return trained(shelf, encoder, rows[:256], seed=seed)

    monkeypatch.setattr(find_errors, "trained", recording)
    probs = find_errors.out_of_fold(shelf, shelf.encoders[0], seed=0)
    assert probs.sum(1) == pytest.approx(np.ones(len(probs)), abs=1e-5)
    assert np.bincount(np.concatenate(trained_on), minlength=len(probs)).tolist() == [find_errors.NUM_FOLDS - 1] * len(
        probs
    )


def test_the_best_cut_of_a_ranking_is_found() -> None:
    draw = np.random.default_rng(1)
    suspicion, wrong = draw.random(50), draw.random(50) < 0.3
    assert find_errors.best_f1(suspicion, wrong) == max(find_errors.f1(suspicion >= cut, wrong) for cut in suspicion)


def test_whitened_features_vary_less_unevenly() -> None:
    draw = np.random.default_rng(0)
    features = (draw.standard_normal((400, 6)) * [9, 3, 1, 1, 1, 1]).astype(np.float32)
    before, after = (np.linalg.eigvalsh(np.cov(find_errors.directions(each, each.mean(0)).T)) for each in
                     (features, find_errors.whitened(features)))  # fmt: skip
    assert after.max() / after.min() < 0.5 * before.max() / before.min()


def test_right_labels_lost_are_counted_by_class() -> None:
    true = np.repeat([0, 1, 2], [10, 10, 3])  # too few of the last class
    shelf = Shelf("", np.where(np.arange(23) == 0, 1, true), true, ())
    dropped = np.isin(np.arange(23), [0, 1, 2, 3, 20, 21])
    assert find_errors.lost(shelf, dropped) == pytest.approx((100 * 3 / 9, 100 * 3 / 18))


@pytest.fixture
def delivery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """Three products of one photo each and a fourth that is tested, a picture of none, and features that are mean colours."""
    (tmp_path / "images").mkdir()
    for number, name in enumerate("abcdx"):
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(tmp_path / "images" / f"{name}.png")
    truth = {"path": [f"{name}.png" for name in "abcd"], "label": [*"pqrp"], "split": ["train"] * 3 + ["test"]}
    given = {"path": ["x.png", "b.png", "a.png", "d.png"], "label": [*"rqqp"], "split": ["train"] * 3 + ["test"]}
    pq.write_table(pa.table(truth), tmp_path / "truth.parquet")
    pq.write_table(pa.table(given), tmp_path / "mixed.parquet")
    monkeypatch.setattr(shelves, "cached_features", lambda photos, **_: photos.mean(axis=(1, 2)).astype(np.float32))
    return argparse.Namespace(data=tmp_path, truth=tmp_path / "truth.parquet", sets=["mixed", "clean"], cache=tmp_path)


def test_pictures_of_no_product_count_as_wrong(delivery: argparse.Namespace) -> None:
    mixed, clean = shelves.planted(delivery, delivery.data, [Path("weights")], 8, "", {})
    assert mixed.given.tolist() == [2, 1, 1]
    assert mixed.true.tolist() == [shelves.NO_CLASS, 1, 0]
    assert mixed.wrong.tolist() == [True, False, True]
    assert mixed.encoders[0][0][:, 0].tolist() == [160, 40, 0]
    assert (clean.given.tolist(), clean.wrong.any()) == ([0, 1, 2], False)
    assert mixed.test is not None
    assert (mixed.test[0][:, 0].tolist(), mixed.test[1].tolist()) == ([240], [0])  # the sum of both views


def test_noise_of_garments_is_drawn_on_all_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    label = np.repeat(np.arange(10), 60)
    photos = PhotoSet(name="", classes=tuple("abcdefghij"), photos=np.zeros((600, 32, 32, 3), np.uint8), label=label,
                      test_photos=np.zeros((600, 32, 32, 3), np.uint8), test_label=label)  # fmt: skip
    monkeypatch.setattr(shelves, "read_photo_set", lambda folder: photos)
    monkeypatch.setattr(shelves, "seen", lambda photos, weights, **_: (np.zeros((len(photos), 2)),) * 2)
    args = argparse.Namespace(garments=Path(), weights=Path(), cache=Path(), photos=300)
    found = {shelf.name: shelf for shelf in shelves.garments(args)}
    shares = {name: shelf.wrong.mean() for name, shelf in found.items()}
    assert shares == {
        "symmetric:0.4": pytest.approx(0.4, abs=0.06),
        "pair:0.3": pytest.approx(0.3, abs=0.06),
        "clean": 0,
    }
    pair = found["pair:0.3"]
    assert np.array_equal(pair.given[pair.wrong], (pair.true[pair.wrong] + 1) % 10)
    assert np.bincount(pair.true).tolist() == [30] * 10
    assert pair.test is not None
    assert np.bincount(pair.test[1]).tolist() == [6] * 10


def test_names_are_compared_with_none_and_with_shuffled_ones(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = next(class_names.drawn_shelves(0))
    monkeypatch.setattr(class_names, "drawn_shelves", lambda seed: iter([first]))
    class_names.main(["--seeds", "0"])
    out = capsys.readouterr().out
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("| one kind |")
    ]
    assert [row[1] for row in cells] == [class_names.WITHOUT, class_names.WITH, class_names.SHUFFLED]
    tilts = [float(row[6].split()[0]) for row in cells]
    assert tilts[0] == 0
    assert tilts[1] > 2 > 5 * tilts[2]
    figures = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    vectors = {each["figure"].split(", ")[1]: each["value"] for each in figures if "vectors of names" in each["figure"]}
    assert vectors.keys() == {"good", "poor", "of other classes"}
    assert abs(vectors["of other classes"]) < class_names.HARMLESS
    changes = [each["value"] for each in figures if "vectors" not in each["figure"]]
    assert changes == [pytest.approx(float(row[2]) - float(cells[0][2]), abs=0.11) for row in cells[1:]]
