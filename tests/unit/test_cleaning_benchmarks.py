"""Benchmarks of cleaning: they run, and their measures are correct."""

from __future__ import annotations

import json

import class_names
import cleaning
import find_errors
import numpy as np
import pytest


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
    shelf = next(find_errors.drawn_shelves())
    trained_on: list[np.ndarray] = []
    trained = find_errors.trained

    def recording(
        shelf: find_errors.Shelf, encoder: find_errors.Views, rows: np.ndarray, *, seed: int
    ) -> find_errors.Head:
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


def test_right_labels_lost_are_counted_by_class() -> None:
    true = np.repeat([0, 1, 2], [10, 10, 3])  # too few of the last class
    shelf = find_errors.Shelf("", np.where(np.arange(23) == 0, 1, true), true, ())
    dropped = np.isin(np.arange(23), [0, 1, 2, 3, 20, 21])
    assert find_errors.lost(shelf, dropped) == pytest.approx((100 * 3 / 9, 100 * 3 / 18))


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
