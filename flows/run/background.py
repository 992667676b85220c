"""Retrainings that a page starts: processes in a session of their own, which outlive the page server.

state/web-run.json names the last one, and state/web-run.log has what it printed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from contract.environment import process_variables
from durable import overwrite
from flows.errors import InputError, WorkspaceBusy
from flows.run.history import RUNNING, names, state_of
from flows.run.record import note
from flows.workspace import Workspace
from models.recipe.config import load_recipe, recipe_names
from serving.server import process

LOG = "web-run.log"
GRACE_S = 30.0  # a training that is asked to end saves its checkpoint
SHOWN = 4000  # bytes of the log's end that are read


@dataclass(frozen=True)
class Started:
    """The last retraining that a page started. `said` is its last line once it has ended, else ""."""

    recipe: str
    overrides: list[str]
    promote: bool
    by: str
    at: str
    is_alive: bool = True
    said: str = ""


def start(workspace: Workspace, recipe: str, overrides: Sequence[str], *, promote: bool, by: str) -> Started:
    """Starts `cleanshelf retrain` in the background. What takes longer to check is refused in its log.

    Raises:
        ConfigError: there is no such recipe or key, or the value is out of range.
        WorkspaceBusy: another run holds the workspace, or the last one has just been started.
    """
    if recipe not in recipe_names():
        raise InputError(f"there is no recipe {recipe!r}; choose one of {', '.join(recipe_names())}")
    load_recipe(recipe, overrides=overrides)
    if (before := last(workspace)) and before.is_alive:
        raise WorkspaceBusy(f"the retraining that {before.by} started is still running; wait for it to end, or stop it")
    with workspace.lock("retrain from the page"):
        pass  # only to see that it is free; the retraining takes it itself
    options = [part for each in overrides for part in ("--set", each)] + ([] if promote else ["--no-promote"])
    command = [sys.executable, "-m", "flows.cli", "retrain", recipe, "--workspace", str(workspace.root), *options]
    pid = process.spawn(command, variables=process_variables(), log=workspace.state / LOG)
    started = Started(recipe, list(overrides), promote, by, datetime.now(UTC).isoformat(timespec="seconds"))
    content = asdict(started) | {"pid": pid, "born": process.birth(pid)}
    overwrite(_file(workspace), json.dumps(content, indent=1).encode())
    return started


def last(workspace: Workspace) -> Started | None:
    """The last retraining that a page started; None if there is none."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        content = json.loads(_file(workspace).read_bytes())
        pid, born = content.pop("pid"), content.pop("born")
        is_alive = born is not None and process.birth(pid) == born
        said = "" if is_alive else _last_line(workspace.state / LOG)
        return Started(**content | {"is_alive": is_alive, "said": said})
    return None


def stop(workspace: Workspace, *, by: str) -> bool:
    """Asks the retraining that a page started to end, and kills it after GRACE_S; False if none is running."""
    found = last(workspace)
    if not found or not found.is_alive:
        return False
    content = json.loads(_file(workspace).read_bytes())
    run = next((each for each in names(workspace)[:1] if _is_of(workspace, each, content["pid"])), None)
    process.end(content["pid"], born=content["born"], grace_s=GRACE_S)
    if run:
        note(workspace.runs / run, "ended", outcome="stopped", text=f"stopped by {by}")
    return True


def _is_of(workspace: Workspace, run: str, pid: int) -> bool:
    """True if the run is that of a process on this machine."""
    found = state_of(workspace, run)
    return found.state == RUNNING and found.pid == pid


def _last_line(log: Path) -> str:
    """The last line that the command printed, or the error that it ended with."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - SHOWN))
        lines = file.read().decode(errors="replace").strip().splitlines()
    errors = [line.removeprefix("cleanshelf: ") for line in lines if line.startswith("cleanshelf: ")]
    return (errors or lines or [""])[-1]


def _file(workspace: Workspace) -> Path:
    return workspace.state / "web-run.json"
