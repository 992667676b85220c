"""The student serves alone if it loses little on the selection photos; otherwise the ensemble does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flows.run.run import Run
from flows.steps.distil import keep_student
from flows.workspace import Workspace
from flows.workspace.results import DataFolder, Served, Trained, Weights
from models.data.manifest import INDEX, write_table
from models.evaluation.scores import Scores, write_scores
from models.recipe.config import from_dict

NUM, CLASSES = 300, ["a", "b", "c"]
IDS = [f"p{i:03}" for i in range(NUM)]
HALF = np.arange(NUM) % 2 == 0

Network = Callable[[str, np.ndarray], Trained]


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    """300 validation photos of three classes, and one train photo of each."""
    ids, labels, folder = [*IDS, *("t0", "t1", "t2")], CLASSES * (NUM // 3 + 1), tmp_path / "data"
    n = len(ids)
    folder.mkdir()
    index = {field.name: ["x"] * n if str(field.type) == "string" else [1] * n for field in INDEX}
    write_table(folder, index | {"id": ids}, name="index")
    columns = {"id": ids, "given_label": labels, "label": labels, "split": ["val"] * NUM + ["train"] * 3,
               "kept": [True] * n, "decision": [""] * n, "score": [None] * n, "round": [0] * n,
               "scored_by": [""] * n}  # fmt: skip
    write_table(folder, columns, name="labels")
    return DataFolder(folder)


@pytest.fixture
def network(tmp_path: Path) -> Network:
    """Makes a result in which these of the validation photos are recognised."""

    def make(name: str, right: np.ndarray) -> Trained:
        target = np.arange(NUM) % 3
        first = np.where(right, target, (target + 1) % 3)
        top = np.stack([first, (first + 1) % 3, (first + 2) % 3], 1)
        probs = np.tile(np.array([0.6, 0.3, 0.1], np.float32), (NUM, 1))
        (tmp_path / name).mkdir()
        write_scores(Scores(np.array(IDS), target, probs[:, 0], top, probs), tmp_path / name / "scores.parquet")
        return Trained(tmp_path / name)

    return make


@pytest.fixture
def ensemble(tmp_path: Path, network: Network) -> Served:
    """Two networks, of which the first alone decides and recognises all but every tenth photo."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "ensemble.json").write_text(json.dumps({"weights": [0.9, 0.1]}))
    good = network("good", np.arange(NUM) % 10 > 0)
    return Served([good, network("poor", HALF)], Weights(tmp_path / "weights"))


def run_of(tmp_path: Path, **proof: object) -> Run:
    recipe = {"name": "any", "distil": {"backbone": "resnet10t", "fall": 0.02}, "proof": proof}
    run = Run(Workspace(tmp_path / "shop"), from_dict(recipe), id="one")
    run.open({})
    return run


def test_a_student_that_loses_little_serves_alone(
    tmp_path: Path, data: DataFolder, ensemble: Served, network: Network
) -> None:
    student = network("student", (np.arange(NUM) % 10 > 0) & (np.arange(NUM) != 15))
    served = keep_student.fn(run_of(tmp_path), data, ensemble, student)
    assert (served.networks, served.shares) == ([student], [1.0])
    assert served.made_from == (*ensemble.networks, ensemble.weights), "they taught it, so that lineage names them"
    assert served.decision is not None
    assert (served.decision["step"], served.decision["method"], served.decision["photos"]) == (
        "distil",
        "resnet10t",
        NUM,
    )
    assert -0.02 < served.decision["low"] < 0
    assert (served.decision["before"], served.decision["stays"]) == (0.9, True)


def test_a_student_that_may_lose_more_is_dropped_and_the_decision_says_so(
    tmp_path: Path, data: DataFolder, ensemble: Served, network: Network
) -> None:
    """It loses less than it may on these photos, but that is not certain."""
    lost = (np.arange(NUM) % 30 == 15) & (np.arange(NUM) < 150)
    student = network("student", (np.arange(NUM) % 10 > 0) & ~lost)
    served = keep_student.fn(run_of(tmp_path), data, ensemble, student)
    assert (served.networks, served.weights, served.made_from) == (ensemble.networks, ensemble.weights, ())
    assert served.students == (student,), "the report has its accuracy"
    assert served.decision is not None
    assert served.decision["before"] - 0.02 < served.decision["after"]
    assert (served.decision["low"] < -0.02, served.decision["stays"]) == (True, False)


def test_a_recipe_without_proof_keeps_any_student(
    tmp_path: Path, data: DataFolder, ensemble: Served, network: Network
) -> None:
    student = network("student", HALF)
    assert keep_student.fn(run_of(tmp_path, confidence=0.0), data, ensemble, student).networks == [student]
