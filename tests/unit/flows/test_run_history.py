"""The record of a run, and the state of runs as their folders show it."""

from __future__ import annotations

import json
import logging
import os
import platform
from pathlib import Path

import pytest

from flows.errors import GateRefused, UnknownRun
from flows.run.history import RunState, names, state_of
from flows.run.launch import run_child
from flows.run.record import MOST_S, RECORD, Recorder, note, recorded
from flows.run.run import Run
from flows.run.step import step
from flows.steps.report import costs
from flows.workspace import Workspace
from models.recipe.config import load_recipe
from serving.server.process import birth

PASS = """
from models.progress import Progress
pause = iter(range(0, 1000, 3))
progress = Progress("scoring", 40, clock=lambda: next(pause))
for _ in range(5):
    progress.add(4)
print("scored")
progress.done()
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    workspace = Workspace(tmp_path)
    run = Run(workspace, load_recipe("smoke"), id="20300101-120000-abc123")
    run.open({"data_version": "0" * 32})
    return run


def state(run: Run) -> RunState:
    return state_of(run.workspace, run.id)


@step("score fold {fold}")
def score(run: Run, fold: int) -> Path:
    """Runs a child once, and reuses its result later."""

    def work(out: Path) -> None:
        run_child("timeit", ["-n", "1", "-r", "1", PASS], say=logging.getLogger("cleanshelf").info, title="fold")
        (out / "result").write_text("done")

    return run.cached("score", fold, files=["result"], work=work)


@step("fail")
def fail(run: Run) -> None:
    """Fails."""
    raise ValueError("the photos are gone")


def test_a_run_under_way_shows_its_steps_and_the_progress_of_its_children(run: Run) -> None:
    logging.getLogger("cleanshelf").setLevel(logging.INFO)
    with recorded(run.folder, "retrain"):
        score(run, 0)
        score(run, 1)
        note(run.folder, "started", step="train member 0")
        under_way = state(run)
    assert (under_way.state, under_way.verb, under_way.recipe) == ("running", "retrain", "smoke")
    assert [(each.step, each.state) for each in under_way.steps] == [
        ("score fold 0", "finished"),
        ("score fold 1", "finished"),
        ("train member 0", "running"),
    ]
    assert "scored" in under_way.lines
    events = [json.loads(line) for line in (run.folder / RECORD).read_text().splitlines()]
    progress = [each for each in events if each["event"] == "progress"]
    assert progress[0]["step"] == "score fold 0"
    assert "photos/s" in progress[0]["text"]


def test_a_step_whose_results_are_there_is_reused(run: Run) -> None:
    score(run, 0)
    score(run, 0)
    assert [(each.step, each.state, each.is_reused) for each in state(run).steps] == [
        ("score fold 0", "finished", False),
        ("score fold 0", "finished", True),
    ]


def test_a_step_that_fails_says_why_and_so_does_its_run(run: Run) -> None:
    with pytest.raises(ValueError, match="gone"), recorded(run.folder, "clean"):
        fail(run)
    found = state(run)
    assert (found.state, found.why, found.steps[0].state) == ("failed", ["the photos are gone"], "failed")


def test_a_killed_run_is_told_from_a_running_one_by_its_process(run: Run) -> None:
    begun = {"verb": "retrain", "pid": os.getpid(), "machine": platform.node()}
    note(run.folder, "begun", born=birth(os.getpid()), **begun)
    note(run.folder, "started", step="train member 0")
    assert state(run).state == "running"
    note(run.folder, "begun", born="another life", **begun)
    assert (state(run).state, state(run).steps[0].state) == ("killed", "killed")


def test_a_run_of_another_machine_counts_as_running(run: Run) -> None:
    note(run.folder, "begun", verb="retrain", pid=1, born="x", machine="another")
    assert (state(run).state, state(run).machine) == ("running", "another")


def test_a_refused_run_gives_the_reasons_of_the_gate(run: Run) -> None:
    verdict = {"passed": False, "reasons": ["tail fell"]}
    (run.folder / "run.json").write_text(json.dumps({"verdict": verdict, "model_version": None}))
    with pytest.raises(GateRefused), recorded(run.folder, "retrain"):
        raise GateRefused(["tail fell"])
    assert (state(run).state, state(run).why) == ("refused", ["tail fell"])


def test_a_published_run_says_that_it_passed_unless_a_person_overruled_a_gate(run: Run) -> None:
    verdict = {"passed": True, "reasons": ["parity: probabilities differ by at most 1e-07", "top-1 accuracy 0.9"]}
    (run.folder / "run.json").write_text(json.dumps({"verdict": verdict, "model_version": 3}))
    assert state(run).why == ["it passed every gate"]
    overruled = {"passed": False, "override": {"reason": "tail is small"}, "reasons": ["tail fell"]}
    (run.folder / "run.json").write_text(json.dumps({"verdict": overruled, "model_version": 3}))
    assert (state(run).state, state(run).why) == ("published", ["tail fell"])


@pytest.mark.parametrize(
    ("report", "outcome"),
    [
        ({"verdict": {"passed": True, "reasons": []}, "model_version": 3}, "published"),
        ({"verdict": {"passed": True, "reasons": []}, "model_version": 3, "promoted": False}, "staged"),
        ({"verdict": {"passed": True, "reasons": []}, "model_version": None}, "judged"),
        ({"verdict": {}}, "unknown"),
        ([], "unknown"),
        (None, "unknown"),
    ],
)
def test_a_run_without_a_record_is_known_by_its_report(run: Run, report: object, outcome: str) -> None:
    if report is not None:
        (run.folder / "run.json").write_text(json.dumps(report))
    assert state(run).state == outcome
    assert state(run).started == "2030-01-01T12:00:00+00:00"


def test_damaged_lines_and_files_leave_the_rest_readable(run: Run) -> None:
    note(run.folder, "begun", verb="clean", pid=os.getpid(), born="gone", machine=platform.node())
    with (run.folder / RECORD).open("ab") as file:
        file.write(b'[]\n{"at": "x"}\n{"at": "now", "event": "begun"}\n\xff\n{"at": "2030-01-01T12:00:00Z", "ev')
    for name in ("run.json", "recipe.json", "inputs.json"):
        (run.folder / name).write_text("{")
    found = state(run)
    assert (found.state, found.verb, found.recipe, found.data_version) == ("killed", "clean", "", "")


@pytest.mark.parametrize("name", ["20300101-120000-ffffff", "../state", "stages", ""])
def test_a_run_that_does_not_exist_is_unknown(run: Run, name: str) -> None:
    assert names(run.workspace) == [run.id]
    with pytest.raises(UnknownRun, match="not a run"):
        state_of(run.workspace, name)


def test_progress_is_written_more_rarely_the_longer_it_takes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    hours, clock = 6, iter(range(0, 10**6, 3))
    recorder = Recorder(run.folder)
    monkeypatch.setattr("flows.run.record.time.monotonic", lambda: float(next(clock)))
    record = logging.makeLogRecord({"msg": "training: 1%", "child": 1, "title": "train-0", "share": 0.01})
    for _ in range(hours * 1200):
        recorder.handle(record)
    written = len((run.folder / RECORD).read_text().splitlines())
    assert hours * 3600 / MOST_S < written < 1.2 * hours * 3600 / MOST_S + 100


def test_a_full_disk_does_not_end_a_run(run: Run) -> None:
    (run.folder / RECORD).symlink_to("/dev/full")
    with recorded(run.folder, "retrain"):
        assert (score(run, 0) / "result").exists()


def test_the_report_says_what_each_finished_step_cost(run: Run) -> None:
    for event, facts in (("started", {}), ("computing", {"result": "a"}), ("finished", {})):
        note(run.folder, event, step="train", **facts)
    note(run.folder, "started", step="export")
    (row,) = costs(run).rows
    assert (row["step"], row["reused"]) == ("train", False)
    assert 0 <= row["seconds"] < 60
