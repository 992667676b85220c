"""Seconds of the steps of a run."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from flows.run.cost import seconds_of
from flows.run.run import Run
from flows.run.step import step
from flows.workspace import Workspace
from models.recipe.config import from_dict


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(Workspace(tmp_path / "shop"), from_dict({"name": "any"}), id="one")
    made.open({})
    return made


@step("work on {part}")
def work(run: Run, part: int, *, seconds: float = 0) -> Path:
    """A cached result."""
    time.sleep(seconds)
    folder = run.folder / str(part)
    if not folder.exists():
        folder.mkdir()
        (folder / "done.json").touch()
    return folder


def test_each_step_is_recorded_until_the_run_is_judged(run: Run) -> None:
    assert seconds_of(run) == []
    work(run, 1, seconds=0.05)
    os.utime(run.folder / "1" / "done.json", (1, 1))
    work(run, part=1)
    work(run, 2)
    first, second, third = seconds_of(run)
    assert [each["step"] for each in (first, second, third)] == ["work on 1", "work on 1", "work on 2"]
    assert [each["reused"] for each in (first, second, third)] == [False, True, False]
    assert 0.05 <= first["seconds"] < 5
    (run.folder / "run.json").touch()
    work(run, 3)
    assert len(seconds_of(run)) == 3, "publishing an earlier run again leaves its files as they are"


def test_a_step_that_fails_or_has_no_run_is_not_recorded(run: Run, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        work(run, 1, seconds="many")
    assert seconds_of(run) == []
    assert step("add {a}")(lambda a: a + 1)(1) == 2
