"""Comparison of recent answers with the answers to the test photos."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.drift import (
    LAST,
    DistributionShift,
    Drift,
    LastDrift,
    Traffic,
    chi_squared,
    compare,
    last_drift,
    markdown,
    read_answers,
    shift,
)
from flows.endpoint.folder import SCHEMA
from flows.errors import InputError
from flows.workspace import Workspace
from flows.workspace.tables import write_table


def draw(seed: int, count: int, *, a: float = 5.0, b: float = 2.0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).beta(a, b, count).astype(np.float32)


@pytest.mark.parametrize("count", [100, 1000, 20_000])
def test_more_of_the_same_is_stable_and_its_index_is_noise(count: int) -> None:
    found = [shift("score", draw(seed, 500), draw(seed + 1000, count)) for seed in range(50)]
    assert {each.verdict for each in found} == {"stable"}
    over = [each.index / each.noise for each in found]
    assert 0.2 < np.mean(over) < 0.5, "9 of 27.9"
    assert sum(ratio > 1 for ratio in over) <= 1


def test_the_quantile_is_that_of_the_tables() -> None:
    assert [chi_squared(freedom) for freedom in (1, 5, 9)] == pytest.approx([10.83, 20.52, 27.88], rel=0.04)


def test_less_sure_answers_are_a_drift_and_a_little_less_is_watched() -> None:
    reference = draw(0, 1000)
    assert shift("score", reference, draw(1, 1000, a=2.0)).verdict == "drifted"
    assert shift("score", reference, draw(1, 1000, a=3.6)).verdict == "watch"


def test_the_distance_is_that_of_kolmogorov_and_smirnov() -> None:
    before, now = np.float32([0.1, 0.2, 0.3, 0.4]), np.float32([0.3, 0.4, 0.5, 0.6])
    assert shift("score", before, now).distance == pytest.approx(0.5)
    assert shift("score", before, before).distance == 0


def test_answers_that_are_all_alike_are_no_error() -> None:
    same = np.full(200, 1.0, np.float32)
    assert shift("score", same, same).verdict == "stable"
    assert shift("score", same, same / 2).verdict == "drifted"


def answers(seed: int, *, tea: int, a: float = 5.0) -> Traffic:
    return Traffic(["tea"] * tea + ["milk"] * (200 - tea), draw(seed, 200, a=a), draw(seed + 1, 200, a=a))


def test_the_worst_measure_decides_and_the_mix_of_classes_is_told() -> None:
    found = compare(answers(0, tea=100), answers(5, tea=160, a=1.0))
    assert found.verdict == "drifted"
    assert found.moved == {"milk": (0.5, 0.2), "tea": (0.5, 0.8)}
    assert found.unknown > found.reference_unknown
    assert compare(answers(0, tea=100), answers(5, tea=160)).verdict == "stable", "shops order what they want"


def test_it_is_told_in_words_and_tables() -> None:
    report = markdown(compare(answers(0, tea=100), answers(5, tea=160, a=1.0)))
    assert report.startswith("# drifted\n\n200 recent photos, ")
    assert "| measure     | index" in report
    assert "| milk    | 0.500  | 0.200 |" in report


def write(path: Path, count: int, **columns: Any) -> Path:
    """A table as `recognise DIR --out` makes it."""
    row: dict[str, Any] = dict.fromkeys(SCHEMA.names) | {"label": "tea", "probability": 0.9, "score": 0.8}
    pq.write_table(pa.Table.from_pylist([row | columns] * count, schema=SCHEMA), path)
    return path


def test_a_table_is_read_without_what_was_no_photo(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "a.parquet", 120, model_version=3), write(tmp_path / "b.parquet", 5, error="no photo")
    both = pa.concat_tables([pq.read_table(good), pq.read_table(bad)])
    pq.write_table(both, good)
    found = read_answers(good, version=3, name="a")
    assert len(found) == 120
    for suffix in (".csv", ".JSONL"):
        copy = tmp_path / f"copy{suffix}"
        write_table([both], copy, schema=SCHEMA, suffix=suffix)
        same = read_answers(copy, version=3, name="copy")
        assert same.label == found.label == ["tea"] * 120
        assert np.array_equal(same.probability, found.probability)
        assert np.array_equal(same.score, found.score)


def test_a_refused_photo_counts_as_one_of_which_nothing_is_said(tmp_path: Path) -> None:
    table = write(tmp_path / "a.parquet", 120, label=None, probability=None, score=0.1)
    found = read_answers(table, version=3, name="a")
    assert set(found.label) == {""}
    assert (found.probability == 0).all()
    assert compare(answers(0, tea=100), found).verdict == "drifted"


@pytest.mark.parametrize(
    ("count", "columns", "message"),
    [
        (99, {}, "x: 99 answers, at least 100 are needed"),
        (
            200,
            {"model_version": 2},
            "x, column model_version: answers of version 2, but version 3 is the current model",
        ),
    ],
)
def test_a_table_that_says_nothing_is_refused(tmp_path: Path, count: int, columns: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_answers(write(tmp_path / "a.parquet", count, **columns), version=3, name="x")


def test_what_is_no_table_of_answers_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a"]}), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("label,probability,score,model_version,error,Label\n")
    header = ",".join(SCHEMA.names)
    (tmp_path / "b.csv").write_text(f"{header}\na.jpg,tea,much,0.5,true,[],[],3,,\n")
    for name in ("a.parquet", "b.parquet", "a.csv", "b.csv"):
        with pytest.raises(InputError, match="not a table of answers"):
            read_answers(tmp_path / name, version=3, name="x")


def test_the_last_comparison_is_read_back_and_a_damaged_one_counts_as_none(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.state.mkdir()
    shifts = [DistributionShift("score", 0.1, 0.2, 0.3, "stable")]
    found = Drift("stable", 100, 200, 0.1, 0.2, shifts, {"soap": (0.5, 0.25)})
    last = LastDrift("2030-01-01T12:00:00+00:00", "photos", 3, found)
    assert last_drift(workspace) is None
    (workspace.state / LAST).write_text(json.dumps(dataclasses.asdict(last)))
    assert last_drift(workspace) == last
    (workspace.state / LAST).write_text("{}")
    assert last_drift(workspace) is None
