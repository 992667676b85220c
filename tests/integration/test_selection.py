"""The selection of data versions while runs are under way: a run's own version, and what others deliver meanwhile."""

from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.data.versions import DataVersions
from flows.errors import WorkspaceBusy
from flows.feedback import feedback
from flows.rollback import rollback_data
from flows.run.inputs import inputs
from flows.run.run import Run
from flows.steps import clean
from flows.steps.clean import deliver, select_cleaned
from flows.steps.start import new_run, select_data
from flows.workspace import DATA_LOCK, Workspace
from models.data.manifest import read_manifest
from models.recipe.config import load_recipe
from serving.server.environment import Environment
from serving.server.process import until
from tests import verbs
from tests.command_line import cleanshelf
from tests.deliveries import deliver as write_delivery
from tests.integration.test_retrain import QUICK, start_retraining
from tests.integration.test_retrain import write_delivery as write_photos
from tests.versions import check_whole, commit_drop, commit_first, keep_drop

pytestmark = [pytest.mark.dvc, pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture
def versions(tmp_path: Path) -> DataVersions:
    """Workspace with one delivery."""
    versions = DataVersions(Workspace.init(tmp_path / "shop"))
    commit_first(versions, tmp_path)
    return versions


def started(versions: DataVersions, name: str = "one") -> Run:
    """A run that has started on the selected data version."""
    run = Run(versions.workspace, load_recipe("smoke"), id=name)
    run.open(inputs(run.workspace, run.recipe))
    return run


def publish(versions: DataVersions, version: str, run: Run) -> str:
    """Selects a version of a run whose model was published; returns the reason if it is not selected."""
    return select_cleaned.fn(versions.workspace, version, run=run.id)


def answer(versions: DataVersions, place: Path, *, label: str, row: int = 0) -> str:
    """Feedback on one photo; returns the new version."""
    photo = read_manifest(versions.workspace.data).id[row]
    (place / "labels.csv").write_text(f"id,label\n{photo},{label}\n")
    return str(feedback(versions.workspace, place / "labels.csv").data_version)


def test_a_version_is_selected_with_its_model_and_only_once(versions: DataVersions) -> None:
    run, first = started(versions), versions.selected()
    made = keep_drop(versions, num=2)
    assert versions.selected() == first
    for _ in range(2):
        assert publish(versions, made, run) == ""
        assert [(entry.id, entry.step, entry.message) for entry in versions.log()][:-1] == [
            (made, "clean-1", "2 dropped")
        ]
    check_whole(versions)


def test_the_result_of_an_earlier_run_gives_way_to_that_of_a_later_publication(versions: DataVersions) -> None:
    early, late = started(versions, "early"), started(versions, "late")
    made = [keep_drop(versions, num=num, parent=versions.log()[-1].id) for num in (1, 2)]
    assert publish(versions, made[0], early) == publish(versions, made[1], late) == ""
    assert [entry.id for entry in versions.log()][:2] == made[::-1]


def ingest_more(versions: DataVersions, place: Path) -> None:
    verbs.ingest(versions.workspace, write_delivery(place / "more", {"Red Mug": 2}, first_seed=500))


def correct_a_label(versions: DataVersions, place: Path) -> None:
    answer(versions, place, label="Red Mug")


def roll_back(versions: DataVersions, place: Path) -> None:
    rollback_data(versions.workspace, versions.log()[-1].id)


@pytest.mark.parametrize(
    ("come_in", "step"), [(ingest_more, "ingest"), (correct_a_label, "feedback"), (roll_back, "rollback")]
)
def test_what_came_in_during_a_run_stays_selected(
    versions: DataVersions, tmp_path: Path, come_in: Callable[[DataVersions, Path], None], step: str
) -> None:
    commit_drop(versions, num=1)
    run = started(versions)
    made = keep_drop(versions, num=2, parent=versions.log()[-1].id)
    come_in(versions, tmp_path)
    log = versions.log()
    assert publish(versions, made, run) == f"data version {made[:12]} is known and not selected: entry 3 ({step})" + (
        " came in after the run started, and the next run starts from it"
    )
    assert (log[0].step, versions.log(), versions.verify(made)) == (step, log, [])
    check_whole(versions)
    assert publish(versions, made, started(versions, "two")) == "", "the next run makes and selects it again"


def test_an_edit_by_hand_or_a_long_delivery_leaves_the_selection(
    versions: DataVersions, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, made, log = started(versions), keep_drop(versions, num=2), versions.log()
    note = versions.workspace.data / "mine.txt"
    note.write_text("mine")
    assert "mine.txt; move these files away" in (reason := publish(versions, made, run))
    assert reason.endswith("the same command again selects it")
    assert note.read_text() == "mine"
    note.unlink()
    monkeypatch.setattr(clean, "PATIENCE_S", 0.2)
    with versions.workspace.lock("ingest", name=DATA_LOCK):
        assert f"`ingest` (process {os.getpid()}) holds it" in publish(versions, made, run)
    assert versions.log() == log
    assert publish(versions, made, run) == ""


def test_labels_as_delivered_are_those_before_any_cleaning_with_the_corrections_of_people(
    versions: DataVersions, tmp_path: Path
) -> None:
    """Also below deliveries and feedback on top of a cleaned version, which carry its decisions on."""
    delivered = deliver.fn(*(run := started(versions), select_data.fn(run)))
    assert delivered.name == versions.selected(), "nothing was cleaned, so nothing is made"
    commit_drop(versions, num=4)
    corrected = answer(versions, tmp_path, label="Red Mug", row=1)
    ingest_more(versions, tmp_path)
    newest, log = versions.selected(), versions.log()
    before = read_manifest(versions.workspace.data)
    assert (~before.kept).sum() == 3

    run = started(versions)
    delivered = deliver.fn(run, select_data.fn(run))
    after = read_manifest(delivered)
    assert after.kept.all()
    assert after.id.tolist() == before.id.tolist()
    assert (after.label[before.decision == "checked"].tolist(), set(after.decision)) == (["Red Mug"], {"", "checked"})
    assert all(
        os.path.samefile(path, versions.workspace.data / "shards" / path.name) for path in delivered.glob("*/*.tar")
    )
    [entry] = [entry for entry in versions.listed() if entry.run]
    assert (entry.id, entry.parent, entry.step, entry.message) == (
        delivered.name, newest, "clean-0", "3 decisions of cleaning taken back"
    )  # fmt: skip
    assert deliver.fn(run, select_data.fn(run)) == delivered
    assert versions.log() == log

    cleaned = keep_drop(versions, num=2, parent=delivered.name)
    assert publish(versions, cleaned, run) == ""
    run = started(versions, "again")
    assert select_data.fn(run).name == newest, "a retraining that is repeated starts from the same version"
    assert deliver.fn(run, select_data.fn(run)) == delivered
    assert corrected in [entry.id for entry in versions.log()]


def test_a_recipe_that_does_not_clean_compares_the_selected_labels_with_those_as_delivered(
    versions: DataVersions,
) -> None:
    first = versions.selected()
    cleaned = commit_drop(versions, num=4)
    run = dataclasses.replace(started(versions), recipe=load_recipe("smoke", overrides=["clean.rounds=0"]))
    run.open(inputs(run.workspace, run.recipe))
    assert (select_data.fn(run).name, deliver.fn(run, select_data.fn(run)).name) == (cleaned, first)


def test_deliveries_come_in_during_a_run_which_keeps_its_own_version(versions: DataVersions, tmp_path: Path) -> None:
    shop, first = versions.workspace, versions.selected()
    staging = versions.new_folder()
    (staging / "half").write_text("a delivery that another process is reading")
    with new_run(shop, load_recipe("smoke"), verb="retrain") as (run, _):
        assert (staging / "half").exists()
        with pytest.raises(WorkspaceBusy, match="`retrain`"), shop.lock("retrain"):
            pass
        ingest_more(versions, tmp_path)
        correct_a_label(versions, tmp_path)
        assert cleanshelf("data", "rollback", versions.log()[1].id, "-w", shop.root).returncode == 0
        assert [entry.step for entry in versions.log()] == ["rollback", "feedback", "ingest", "ingest"]
        assert select_data.fn(run).name == first
        for verb in ("gc", "purge"):
            busy = cleanshelf("data", verb, "-w", shop.root)
            assert (busy.returncode, "`retrain`" in busy.stderr) == (2, True), "they touch the copies that runs read"
    check_whole(versions)


@pytest.mark.triton
@pytest.mark.slow  # its parts have tests of their own
def test_a_delivery_on_the_command_line_during_a_retraining(tmp_path: Path, triton_environment: Environment) -> None:
    """Both commands have a Prefect server of their own on one database, and neither marks the other's run as crashed."""
    shop = Workspace.init(tmp_path / "shop")
    verbs.ingest(shop, write_photos(tmp_path / "delivery"))
    more = write_delivery(tmp_path / "more", {"Kid's cup": 3}, first_seed=500)
    process = start_retraining(shop, tmp_path / "log", keys=(*QUICK, "train.epochs=30"))
    assert until(lambda: any(shop.runs.glob("stages/*/checkpoint.pt")) or process.poll() is not None, timeout_s=120)
    done = cleanshelf("ingest", more, "--workspace", shop.root)
    assert done.returncode == 0, done.stderr
    assert process.poll() is None, "the retraining has not ended before"
    assert process.wait() == 0, (tmp_path / "log").read_text()
    [report] = [json.loads(path.read_text()) for path in shop.runs.glob("*/run.json")]
    assert "entry 2 (ingest) came in after the run started" in report["selection"]
    assert report["selection"] in (tmp_path / "log").read_text()
    assert report["model_version"] == 1
    check_whole(DataVersions(shop))
    with sqlite3.connect(shop.state / "prefect" / "prefect.db") as database:
        runs = database.execute("select flow.name, state_type from flow_run join flow on flow.id = flow_run.flow_id")
        assert {*runs} == {("retrain", "COMPLETED"), ("ingest", "COMPLETED")}
