"""Several rounds of cleaning in a real retraining: each a data version, the same after a kill, and none more when repeated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flows.data.versions import DataVersions
from flows.endpoint.server import stop_endpoint
from flows.report.run_report import Report
from flows.retrain import retrain
from flows.workspace import Workspace
from models.data.confusion import read_confusion
from models.data.manifest import Manifest, read_manifest
from models.recipe.config import load_recipe
from serving.server.process import kill
from tests.integration.test_retrain import (
    ANY,
    QUICK,
    SKUS,
    copy,
    delivered,
    history,
    kill_retraining,
    processes,
    start_retraining,
)

__all__ = ["delivered"]  # the fixture
pytestmark = [
    pytest.mark.dvc,
    pytest.mark.prefect,
    pytest.mark.triton,
]

ROUNDS = (*QUICK, *ANY, "clean.rounds=2", "clean.stop_share=0")


@pytest.fixture(scope="module")
def cleaned(delivered: Workspace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Report]:
    """A workspace after a retraining with two rounds."""
    workspace = copy(delivered, tmp_path_factory.mktemp("cleaned") / "shop")
    return workspace, retrain(workspace, load_recipe("smoke", overrides=ROUNDS))


def read(workspace: Workspace, version: str) -> Manifest:
    return read_manifest(DataVersions(workspace).materialise(version))


def test_each_round_is_a_version_that_judges_all_labels_anew(cleaned: tuple[Workspace, Report]) -> None:
    workspace, report = cleaned
    (second, *of_second), (first, *of_first), (ingested, *_) = history(workspace)
    assert (of_first, of_second) == ([ingested, "clean-1"], [first, "clean-2"])
    assert (report.data_before, report.data_after) == (ingested, second)
    before, after = read(workspace, first), read(workspace, second)
    judged = after.split != "test"
    assert (before.round[judged] == 1).all()
    assert (after.round[judged] == 2).all(), "those that the first round dropped as well"
    assert (before.decision == "dropped").sum() > 0
    assert (before.score[judged] != after.score[judged]).mean() > 0.9
    assert ((after.score[judged] >= 0) & (after.score[judged] <= 1)).all()
    diff = DataVersions(workspace).diff(first, second)
    assert diff.restored > 0, "three epochs change their mind"
    assert diff.dropped > 0
    for manifest in (before, after):
        assert_judged_by_folds(workspace, manifest)
        believed = manifest.label[(manifest.split == "train") & manifest.kept]
        assert np.unique(believed, return_counts=True)[1].min() >= 5
    assert set(before.scored_by).isdisjoint(set(after.scored_by) - {""}), "each round has its own networks"


def assert_judged_by_folds(workspace: Workspace, manifest: Manifest) -> None:
    """Each row names the stages whose networks judged it, and their folders are there."""
    for split, num in (("train", 1), ("val", 2), ("test", 0)):
        for named in set(manifest.scored_by[manifest.split == split]):
            names = named.split()
            assert len(names) == num
            assert all((workspace.runs / "stages" / name / "network.pt").exists() for name in names)


def test_the_same_again_adds_no_version(cleaned: tuple[Workspace, Report], tmp_path: Path) -> None:
    workspace, before = copy(cleaned[0], tmp_path / "shop"), cleaned[1]
    versions = history(workspace)
    again = retrain(workspace, load_recipe("smoke", overrides=ROUNDS))
    assert history(workspace) == versions
    assert again.data_after == before.data_after
    DataVersions(workspace).rollback(before.data_before)
    assert retrain(workspace, load_recipe("smoke", overrides=ROUNDS)).data_after == before.data_after
    assert [step for *_, step in history(workspace)][:3] == ["clean-2", "clean-1", "rollback"]


@pytest.mark.slow  # what it joins is tested part by part
def test_no_further_round_where_little_moves(cleaned: tuple[Workspace, Report], tmp_path: Path) -> None:
    workspace = copy(cleaned[0], tmp_path / "shop")
    report = retrain(workspace, load_recipe("smoke", overrides=[*ROUNDS, "clean.stop_share=0.99"]))
    assert next(step for version, _, step in history(workspace) if version == report.data_after) == "clean-1"


@pytest.mark.faults
@pytest.mark.slow  # test_retrain kills a retraining every time
def test_killed_between_two_rounds_it_takes_the_same_decisions(
    delivered: Workspace, cleaned: tuple[Workspace, Report], tmp_path: Path
) -> None:
    workspace, undisturbed = copy(delivered, tmp_path / "shop"), cleaned[0]
    tag = "refs/tags/data/" + history(undisturbed)[1][0][:12]
    try:
        kill_retraining(
            workspace, tmp_path / "1.log", once=lambda: (workspace.root / ".git" / tag).exists(), keys=ROUNDS
        )
        assert history(workspace) == history(undisturbed)[1:], "the first round was done"
        log = tmp_path / "2.log"
        assert start_retraining(workspace, log, keys=ROUNDS).wait() == 0, log.read_text()
        assert history(workspace) == history(undisturbed)
    finally:
        stop_endpoint(workspace)
        kill(list(processes(workspace.state)))


@pytest.mark.slow  # what it joins is tested part by part
def test_weighed_labels_stay_in_training_and_sure_ones_are_replaced(delivered: Workspace, tmp_path: Path) -> None:
    workspace = copy(delivered, tmp_path / "shop")
    weigh = (
        "clean.use=weigh", "clean.correct=true", "clean.relabel=0.3", "clean.floor_count=1", "clean.rounds=2", "clean.stop_share=0"
    )  # fmt: skip
    report = retrain(workspace, load_recipe("smoke", overrides=[*QUICK, *ANY, *weigh]))
    assert report.model_version == 1
    manifest = read(workspace, report.data_after)
    train = manifest.split == "train"
    assert manifest.kept[train].all()
    assert (manifest.decision == "doubted").sum() > 0
    moved = manifest.decision == "relabelled"
    assert moved.sum() > 0
    assert (manifest.label[moved] != manifest.given_label[moved]).all()
    assert (manifest.label[~moved] == manifest.given_label[~moved]).all()
    assert set(manifest.label) == {sku.label for sku in SKUS}
    counts = DataVersions(workspace).log()[0].counts
    assert (counts["relabelled"], counts["doubted"]) == (moved.sum(), (manifest.decision == "doubted").sum())
    first, second = (
        DataVersions(workspace).materialise(version) for version in (history(workspace)[1][0], report.data_after)
    )
    of_first, of_second = (read_confusion(each, classes=manifest.classes) for each in (first, second))
    assert of_first is not None, "each round says what is given for what"
    assert of_second is not None
    assert of_first.kept.tolist() != of_second.kept.tolist(), "anew"
    assert 0 < of_second.rate < 1
