"""Several rounds of cleaning in a real retraining: each makes one data version, the same after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flows.data.versions import DataVersions
from flows.endpoint.server import stop_endpoint
from flows.ingest import ingest
from flows.registry.repository import repository
from flows.report.run_report import Report
from flows.retrain import retrain
from flows.workspace import Workspace
from models.data.confusion import read_confusion
from models.data.manifest import UNLABELLED, Manifest, read_manifest
from models.export.patch import read_metadata
from models.recipe.config import load_recipe
from serving.server.process import kill
from tests.deliveries import deliver
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
    pytest.mark.slow,
    pytest.mark.triton,
]

ROUNDS = (*QUICK, *ANY, "clean.rounds=2", "clean.stop_share=0")


@pytest.fixture(scope="module")
def cleaned(delivered: Workspace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Report]:
    """Workspace after a retraining with two rounds, and the report of that run."""
    workspace = copy(delivered, tmp_path_factory.mktemp("cleaned") / "shop")
    return workspace, retrain(workspace, load_recipe("smoke", overrides=ROUNDS))


def unselected(workspace: Workspace) -> list[tuple[str, str | None, str]]:
    """Versions that a run made and did not select."""
    return [(entry.id, entry.parent, entry.step) for entry in DataVersions(workspace).listed() if entry.run]


def read(workspace: Workspace, version: str) -> Manifest:
    return read_manifest(DataVersions(workspace).materialise(version))


def test_each_round_is_a_version_with_new_scores_of_all_labels(cleaned: tuple[Workspace, Report]) -> None:
    workspace, report = cleaned
    (second, *second_confusion), (ingested, *_) = history(workspace)
    [(first, *first_confusion)] = unselected(workspace)
    assert (first_confusion, second_confusion) == ([ingested, "clean-1"], [first, "clean-2"]), (
        "the last one is selected"
    )
    assert (report.data_before, report.data_after) == (ingested, second)
    before, after = read(workspace, first), read(workspace, second)
    scored = after.split != "test"
    assert before.kept[before.split == "val"].all()
    assert (before.round[scored] == 1).all()
    assert (after.round[scored] == 2).all(), "including photos that the first round dropped"
    assert (before.decision == "dropped").sum() > 0
    assert (before.score[scored] != after.score[scored]).mean() > 0.9
    assert ((after.score[scored] >= 0) & (after.score[scored] <= 1)).all()
    diff = DataVersions(workspace).diff(first, second)
    assert diff.restored > 0, "networks of three epochs differ in their decisions"
    assert diff.dropped > 0
    for manifest in (before, after):
        assert_scored_by_folds(workspace, manifest)
        kept_labels = manifest.label[(manifest.split == "train") & manifest.kept]
        assert np.unique(kept_labels, return_counts=True)[1].min() >= 5
    assert set(before.scored_by).isdisjoint(set(after.scored_by) - {""}), "each round has its own networks"


def assert_scored_by_folds(workspace: Workspace, manifest: Manifest) -> None:
    """Checks that each row names the steps whose networks scored it, and that their folders exist."""
    for split, num in (("train", 1), ("val", 2), ("test", 0)):
        for named in set(manifest.scored_by[manifest.split == split]):
            names = named.split()
            assert len(names) == num
            assert all((workspace.runs / "stages" / name / "network.pt").exists() for name in names)


@pytest.mark.slow
def test_the_same_again_adds_no_version(cleaned: tuple[Workspace, Report], tmp_path: Path) -> None:
    workspace, before = copy(cleaned[0], tmp_path / "shop"), cleaned[1]
    versions = history(workspace)
    again = retrain(workspace, load_recipe("smoke", overrides=ROUNDS))
    assert history(workspace) == versions
    assert again.data_after == before.data_after
    DataVersions(workspace).rollback(before.data_before)
    assert retrain(workspace, load_recipe("smoke", overrides=ROUNDS)).data_after == before.data_after
    assert [step for *_, step in history(workspace)][:2] == ["clean-2", "rollback"]


@pytest.mark.slow  # its parts have tests of their own
def test_no_further_round_if_few_decisions_change(cleaned: tuple[Workspace, Report], tmp_path: Path) -> None:
    workspace = copy(cleaned[0], tmp_path / "shop")
    retrain(workspace, load_recipe("smoke", overrides=[*ROUNDS, "clean.stop_share=0.99"]))
    assert history(workspace)[0][2] == "clean-1"


@pytest.mark.faults
@pytest.mark.slow  # test_retrain kills a retraining every time
def test_killed_between_two_rounds_it_takes_the_same_decisions(
    delivered: Workspace, cleaned: tuple[Workspace, Report], tmp_path: Path
) -> None:
    workspace, undisturbed = copy(delivered, tmp_path / "shop"), cleaned[0]
    tag = "refs/tags/data/" + unselected(undisturbed)[0][0][:12]
    try:
        kill_retraining(
            workspace, tmp_path / "1.log", once=lambda: (workspace.root / ".git" / tag).exists(), keys=ROUNDS
        )
        assert history(workspace) == history(undisturbed)[1:], "nothing is selected before the model is published"
        assert unselected(workspace) == unselected(undisturbed), "the first round was done"
        log = tmp_path / "2.log"
        assert start_retraining(workspace, log, keys=ROUNDS).wait() == 0, log.read_text()
        assert history(workspace) == history(undisturbed)
    finally:
        stop_endpoint(workspace)
        kill(list(processes(workspace.state)))


STUDENT = ("distil.backbone=test_resnet", "distil.size=24", "distil.epochs=2")


@pytest.mark.slow  # its parts have tests of their own
def test_downweighted_labels_stay_in_training_and_sure_corrections_are_made(
    delivered: Workspace, tmp_path: Path
) -> None:
    workspace = copy(delivered, tmp_path / "shop")
    ingest(workspace, deliver(tmp_path / "more", {"any": 5}, side=48), unlabelled=True)
    weigh = (
        "clean.use=weigh", "clean.correct=true", "clean.relabel=0.3", "clean.floor_count=1", "clean.rounds=2", "clean.stop_share=0"
    )  # fmt: skip
    report = retrain(workspace, load_recipe("smoke", overrides=[*QUICK, *ANY, *weigh, *STUDENT]))
    assert report.model_version == 1
    manifest = read(workspace, report.data_after)
    train = manifest.split == "train"
    assert manifest.kept[train].all()
    assert (manifest.decision == "doubted").sum() > 0
    moved = manifest.decision == "relabelled"
    assert moved.sum() > 0
    assert (manifest.label[moved] != manifest.given_label[moved]).all()
    assert (manifest.label[~moved] == manifest.given_label[~moved]).all()
    bare = manifest.split == UNLABELLED
    assert set(manifest.label[~bare]) == {sku.label for sku in SKUS}
    assert (bare.sum(), set(manifest.label[bare]), np.isnan(manifest.score[bare]).all()) == (5, {""}, True)
    counts = DataVersions(workspace).log()[0].counts
    assert (counts["relabelled"], counts["doubted"]) == (moved.sum(), (manifest.decision == "doubted").sum())
    first, second = (
        DataVersions(workspace).materialise(version) for version in (unselected(workspace)[0][0], report.data_after)
    )
    first_confusion, second_confusion = (read_confusion(each, classes=manifest.classes) for each in (first, second))
    assert first_confusion is not None, "each round estimates a confusion matrix"
    assert second_confusion is not None
    assert first_confusion.kept.tolist() != second_confusion.kept.tolist(), "the second round estimates its own"
    assert 0 < second_confusion.rate < 1
    a_student_serves(workspace, report)


def a_student_serves(workspace: Workspace, report: Report) -> None:
    """Asserts that the graph is the student's, that the report says so, and that lineage names who taught it."""
    assert [row.step for row in report.steps[-3:]] == [
        "ensemble of 2",
        "student of the ensemble",
        "one graph, with crops",
    ]
    (decision,) = [each for each in report.evidence if each["step"] == "distil"]
    assert (decision["method"], decision["stays"]) == ("test_resnet", True)
    (member,) = json.loads(read_metadata(repository(workspace).path(1) / "model.onnx")["members"])
    assert (member["backbone"], member["size"], member["tau"], member["weight"]) == ("test_resnet", 24, 0.0, 1.0)
    stages = sorted(name.rsplit("-", 1)[0] for name in repository(workspace).lineage(1)["stages"])
    assert stages == [
        *("alone", "balance-1-test_resnet", "balance-2-test_byobnet", "calibrate", "crops", "ensemble"),
        "student-test_resnet",
    ]
    (answers,) = workspace.runs.glob("stages/answers-*/classes.npy")
    split = read(workspace, report.data_after).split
    assert len(np.load(answers)) == (split == "train").sum() + (split == UNLABELLED).sum()


TAIL = ("train.progressive=true", "train.best_epochs=1", "train.best_photos=4", "train.epoch_length=64", "train.har=0.1",
        "train.class_weights=effective", "balance.method=ncm", "balance.best_photos=6")  # fmt: skip


@pytest.mark.slow  # its parts have tests of their own
def test_the_flow_trains_a_stateful_loss_with_long_tail_options_by_two_workers(
    delivered: Workspace, tmp_path: Path
) -> None:
    workspace = copy(delivered, tmp_path / "shop")
    marvel = ("loss.name=marvel+", "loss.params.base=nce+agce", "loss.params.warmup_ce_epochs=1", "loss.params.start_epoch=1",
              "loss.params.run=1")  # fmt: skip
    report = retrain(workspace, load_recipe("smoke", overrides=(*QUICK, *ANY, *TAIL, *marvel, "train.workers=2")))
    assert report.model_version == 1
    assert report.seen
    trained = [path for path in workspace.runs.glob("stages/train-*") if path.is_dir()]
    assert trained
    assert all((path / "samples.parquet").exists() for path in trained)
    balanced = [json.loads(path.read_text()) for path in workspace.runs.glob("stages/balance-*/balance.json")]
    assert [evidence["chosen"]["method"] for evidence in balanced] == ["ncm", "ncm"]
