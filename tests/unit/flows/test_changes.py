"""Changes against the current model and against the last run."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from flows.gate.gates import Hits
from flows.gate.verdict import Verdict
from flows.report.changes import against_last_run, changed_products
from flows.report.run_report import Report
from flows.report.steps import StepAccuracy

STEP = StepAccuracy("one graph", 0.6, 0.5, 0.7, None, 0.3)
HITS = Hits(
    photo=np.array([f"p{i}" for i in range(8)], object),
    target=np.array([0, 0, 1, 1, 1, 2, 2, 3]),
    new=np.array([True, False, False, False, True, True, True, True]),
    serving=np.array([True, True, True, True, True, True, False, True]),
    labels=np.array(["tea", "milk", "soap", "rice", "beans"]),
    third=np.zeros(5, np.int64),
)


def test_products_that_fell_come_with_a_photo_that_is_no_longer_recognised() -> None:
    numbers, fallen = changed_products(HITS, "model version 3")
    assert fallen.title == "Products that fell compared with model version 3"
    assert [tuple(row.values()) for row in fallen.rows] == [
        ("milk", 3, 1.0, 1 / 3, "p2"),
        ("tea", 2, 1.0, 0.5, "p1"),
    ], "the one that lost more photos comes first"
    assert [tuple(row.values()) for row in numbers.rows] == [("better", 1), ("the same", 1), ("worse", 2)]


def test_without_a_current_model_nothing_changed() -> None:
    assert changed_products(replace(HITS, serving=None), "no model") == []


def test_the_numbers_of_the_last_run_stand_beside_those_of_this_one() -> None:
    manifest: Any = SimpleNamespace(
        classes=["a", "b"],
        kept=np.array([True, True, True, False]),
        split=np.array(["train", "val", "train", "train"], object),
    )
    first = against_last_run(manifest, STEP, 7, None)
    assert first.title == "This run and the last one"
    expected = [2, 2, 1, 0, 7, 0.5, 0.7, None, 0.3]
    assert [(row["last run"], row["this run"]) for row in first.rows] == [(None, value) for value in expected]
    last = Report("before", "", "", [replace(STEP, mean_class=0.25)], [], Verdict(True, (), ""), [])
    second = against_last_run(manifest, STEP, 7, last)
    assert second.title == "This run and the last one, before"
    told = {row["measure"]: row["last run"] for row in second.rows}
    assert (told["accuracy, mean over products"], told["accuracy, head"], told["products"]) == (0.25, 0.7, None), (
        "a run of an earlier release"
    )
    third = against_last_run(manifest, STEP, 9, replace(last, figures=[first]))
    assert [row["last run"] for row in third.rows] == expected
