"""Time left of a run by the record of an earlier one."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flows.run.forecast import seconds_left, with_time_left
from flows.run.history import RunState, RunStep, state_of
from flows.run.record import RECORD
from flows.run.run import Run
from flows.workspace import Workspace
from models.recipe.config import load_recipe
from serving.server.process import birth

NOW = datetime(2030, 1, 2, 12, 0, tzinfo=UTC)
OLD, OLDER, NEW = "20300101-120000-aaaaaa", "20291231-120000-bbbbbb", "20300102-120000-cccccc"


def done(name: str, start: float, seconds: float) -> RunStep:
    began = NOW - timedelta(days=1) + timedelta(seconds=start)
    return RunStep(name, "finished", began.isoformat(), seconds)


def running(name: str, so_far: float, share: float | None = None) -> RunStep:
    return RunStep(name, "running", (NOW - timedelta(seconds=so_far)).isoformat(), share=share)


EARLIER = [done("read", 0, 10), done("train", 10, 100), done("train", 110, 50), done("gate", 160, 20)]


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        ([], 180),
        ([running("read", 4)], 176),
        ([running("read", 30)], 170),  # it takes longer than it did, and nothing says how much
        ([done("read", 0, 10), running("train", 50, 0.25)], 220),  # by its own progress another 150 s
        ([done("read", 0, 10), running("train", 20, 0.5)], 90),
        ([done("read", 0, 1), done("train", 1, 1), running("train", 10)], 60),  # the second of this name
        ([done(name, 0, 1) for name in ("read", "train", "train", "gate")], 0),
        ([done("another", 0, 1)], 180),
    ],
)
def test_steps_that_are_still_to_come_count(steps: list[RunStep], left: float) -> None:
    assert seconds_left(steps, EARLIER, now=NOW) == pytest.approx(left)


def test_steps_side_by_side_count_once() -> None:
    earlier = [done("fold 0", 0, 100), done("fold 1", 0, 90), done("fold 2", 100, 10)]
    assert seconds_left([], earlier, now=NOW) == pytest.approx(110)
    assert seconds_left([running("fold 0", 40), running("fold 1", 40)], earlier, now=NOW) == pytest.approx(70)


def record(workspace: Workspace, name: str, events: list[tuple[float, dict[str, object]]], *overrides: str) -> RunState:
    """A run with these events, each with its seconds after NOW."""
    run = Run(workspace, load_recipe("smoke", overrides=list(overrides)), id=name)
    run.open({"data_version": "0" * 32})
    begun: dict[str, object] = {"event": "begun", "verb": "retrain", "pid": os.getpid(), "born": birth(os.getpid())}
    lines = [(0.0, begun | {"machine": platform.node()}), *events]
    texts = [json.dumps({"at": (NOW + timedelta(seconds=at)).isoformat()} | event) for at, event in lines]
    (run.folder / RECORD).write_text("\n".join(texts) + "\n")
    return state_of(workspace, name)


def whole(*, reused: bool = False) -> list[tuple[float, dict[str, object]]]:
    kind = {"event": "reused" if reused else "computing", "step": "train", "result": "x"}
    train = [{"event": "started", "step": "train"}, kind, {"event": "finished", "step": "train"}]
    end: dict[str, object] = {"event": "ended", "outcome": "finished", "text": ""}
    seconds = 1.0 if reused else 1000.0
    return [(0.0, train[0]), (0.0, train[1]), (seconds, train[2]), (seconds, end)]  # type: ignore[list-item]  # texts only


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


UNDER_WAY: list[tuple[float, dict[str, object]]] = [
    (0.0, {"event": "started", "step": "train"}),
    (0.0, {"event": "computing", "step": "train", "result": "x"}),
]


def test_the_last_run_that_computed_as_much_is_asked(workspace: Workspace) -> None:
    record(workspace, OLDER, whole())
    record(workspace, OLD, whole(reused=True), "gate.tail=0.5")
    found = with_time_left(workspace, record(workspace, NEW, UNDER_WAY))
    assert found.last_seconds == 1000
    assert found.seconds_left is not None


@pytest.mark.parametrize(
    ("events", "overrides"),
    [(whole(), ["train.epochs=99"]), (UNDER_WAY, []), (whole(reused=True), [])],
    ids=["another recipe", "it did not end", "it reused what this one computes"],
)
def test_there_is_no_number_without_a_run_to_go_by(
    workspace: Workspace, events: list[tuple[float, dict[str, object]]], overrides: list[str]
) -> None:
    record(workspace, OLD, events, *overrides)
    new = record(workspace, NEW, UNDER_WAY)
    assert with_time_left(workspace, new) == new
    ended = record(workspace, OLD, whole())
    assert with_time_left(workspace, ended) == ended
