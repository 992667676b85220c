"""Accuracy after each step of a retraining."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flows.report.steps import StepAccuracy, step_accuracies
from models.data.manifest import INDEX, write_table
from models.evaluation.scores import Scores, write_scores

CLASSES = ["a", "b", "c"]


def write_data(folder: Path, *, split: str) -> Path:
    """Three kept photos per class in train (3, 2 and 1 of them) and one each in `split`: p0 to p2."""
    labels = [*CLASSES, "a", "a", "a", "b", "b", "c"]
    ids = [f"p{i}" for i in range(len(labels))]
    n = len(ids)
    index = {field.name: ["x"] * n if str(field.type) == "string" else [1] * n for field in INDEX}
    folder.mkdir()
    write_table(folder, index | {"id": ids}, name="index")
    columns = {"id": ids, "given_label": labels, "label": labels, "split": [split] * 3 + ["train"] * (n - 3)}
    rest = {"kept": [True] * n, "decision": [""] * n, "score": [None] * n, "round": [0] * n, "scored_by": [""] * n}
    write_table(folder, columns | rest, name="labels")
    return folder


@pytest.fixture
def network(tmp_path: Path) -> Callable[[str, list[list[float]]], Path]:
    """Writes the result of a training whose network gives p0, p1 and p2 these probabilities of a, b and c."""

    def write(name: str, probs: list[list[float]]) -> Path:
        dense = np.array(probs, np.float32)
        top = np.argsort(-dense, axis=1, kind="stable")
        folder = tmp_path / name
        folder.mkdir()
        photos, best = np.array(["p0", "p1", "p2"]), np.take_along_axis(dense, top, 1)
        write_scores(Scores(photos, np.arange(3), dense.diagonal().copy(), top, best), folder / "scores.parquet")
        return folder

    return write


def write_graph(folder: Path, ranked: list[list[int]], target: list[int]) -> Path:
    folder.mkdir()
    np.savez(
        folder / "answers.npz", ranked=np.array(ranked, np.int64).reshape(-1, 3), target=np.array(target, np.int64)
    )
    return folder


def write_weights(folder: Path, weights: list[float]) -> Path:
    folder.mkdir()
    (folder / "ensemble.json").write_text(json.dumps({"weights": weights}))
    return folder


def write_crops(folder: Path, *, crops: int) -> Path:
    folder.mkdir()
    (folder / "crops.json").write_text(json.dumps({"crops": crops, "enlarge": 1.25}))
    return folder


RIGHT = [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]
ALL_A = [[0.8, 0.1, 0.1], [0.5, 0.4, 0.1], [0.5, 0.1, 0.4]]  # a is right, b and c are second best
ALL_C = [[0.4, 0.1, 0.5], [0.1, 0.4, 0.5], [0.1, 0.1, 0.8]]


def test_one_row_per_step(tmp_path: Path, network: Callable[..., Path]) -> None:
    data = write_data(tmp_path / "data", split="test")
    first = [network("first 0", ALL_A), network("first 1", RIGHT)]
    balanced = [network("balanced 0", ALL_A), network("balanced 1", ALL_C)]
    graph = write_graph(tmp_path / "graph", [[0, 1, 2], [1, 0, 2], [0, 1, 2]], [0, 1, 2])
    third = pytest.approx(1 / 3)
    retrained, weights = [network("retrained", RIGHT)], write_weights(tmp_path / "weights", [0.5, 0.5])
    crops = write_crops(tmp_path / "crops", crops=10)
    given = {"balanced": balanced, "graph": graph}
    steps = step_accuracies(
        data, as_delivered=first, cleaned=retrained, finetuned=[], weights=weights, crops=crops, **given
    )
    assert steps == [
        StepAccuracy("one network, labels as delivered", pytest.approx(2 / 3), pytest.approx(2 / 3), 1.0, 0.5, 0.5),
        StepAccuracy("one network, after cleaning", 1.0, 1.0, 1.0, 1.0, 1.0),
        StepAccuracy("one network, re-balanced", third, third, 0.5, 0.0, 0.5),
        StepAccuracy("ensemble of 2", 1.0, 1.0, 1.0, 1.0, 1.0),  # two that are each right once are right together
        StepAccuracy("one graph, with crops", pytest.approx(2 / 3), pytest.approx(2 / 3), 1.0, 1.0, 0.0),
    ]
    finetuned = [network("finetuned", ALL_C)]
    weights = write_weights(tmp_path / "other weights", [0.0, 1.0])
    crops = write_crops(tmp_path / "other crops", crops=1)
    more = step_accuracies(
        data, as_delivered=first, cleaned=retrained, finetuned=finetuned, weights=weights, crops=crops, **given
    )
    assert more[2] == StepAccuracy("one network, at high resolution", third, third, 0.0, 0.0, 1.0)
    assert more[4] == StepAccuracy("ensemble of 1", third, third, 0.0, 0.0, 1.0), "the second alone"
    assert [*more[:2], more[3]] == steps[:3]
    assert more[5] == dataclasses.replace(steps[4], step="one graph")
    student = [network("student", RIGHT)]
    last = step_accuracies(
        data,
        as_delivered=first,
        cleaned=retrained,
        finetuned=[],
        weights=weights,
        students=student,
        crops=crops,
        **given,
    )
    assert [row.step for row in last[-3:]] == ["ensemble of 1", "student of the ensemble", "one graph"]
    assert last[-2] == StepAccuracy("student of the ensemble", 1.0, 1.0, 1.0, 1.0, 1.0)


def test_without_test_photos_there_are_no_figures(tmp_path: Path, network: Callable[..., Path]) -> None:
    data = write_data(tmp_path / "data", split="val")
    folder = network("any", RIGHT)
    weights, crops = write_weights(tmp_path / "weights", [1.0]), write_crops(tmp_path / "crops", crops=10)
    graph = write_graph(tmp_path / "graph", [], [])
    steps = step_accuracies(data, as_delivered=[folder], cleaned=[folder], finetuned=[], balanced=[folder], weights=weights,
                    crops=crops, graph=graph)  # fmt: skip
    for row in steps:
        assert {row.top1, row.mean_class, row.head, row.middle, row.tail} == {None}, row.step
