"""Verbs that a page starts: processes in a session of their own, which outlive the page server, one at a time in each lane.

state/web-LANE.json names the last one, state/web-LANE.out has what it printed, and state/web-LANE.log its progress and errors.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contract.environment import process_variables
from durable import overwrite
from flows.errors import InputError, WorkspaceBusy
from flows.run.history import RUNNING, names, state_of
from flows.run.record import note
from flows.workspace import DATA_LOCK, Workspace
from models.recipe.config import load_recipe, recipe_names
from serving.server import process

RUN, DELIVERY = "run", "delivery"  # lanes: what works on models, and what takes in photos
GRACE_S = 30.0  # a training that is asked to end saves its checkpoint
SHOWN = 16_000  # bytes of the end of a file that are read
TO_FILE = 'exec "$@" >"$0"'  # of sh: runs its arguments in the same process, with their output in the file $0


@dataclass(frozen=True)
class Started:
    """The last verb that a page started in a lane.

    about: its recipe, run, model version or delivery.
    said: its last line; of one that failed the error.
    printed: all that it printed, once it has ended.
    """

    verb: str
    about: str
    options: list[str]
    by: str
    at: str
    is_alive: bool = True
    has_failed: bool = False
    said: str = ""
    printed: list[str] = field(default_factory=list)


def start(workspace: Workspace, recipe: str, overrides: Sequence[str], *, promote: bool, by: str) -> Started:
    """Starts `cleanshelf retrain` in the background. What takes longer to check is refused in its log.

    Raises:
        ConfigError: there is no such recipe or key, or the value is out of range.
        WorkspaceBusy: another run holds the workspace, or the last one has just been started.
    """
    if recipe not in recipe_names():
        raise InputError(f"there is no recipe {recipe!r}; choose one of {', '.join(recipe_names())}")
    load_recipe(recipe, overrides=overrides)
    options = [part for each in overrides for part in ("--set", each)] + ([] if promote else ["--no-promote"])
    return start_verb(workspace, RUN, "retrain", recipe, options, by=by)


def start_verb(
    workspace: Workspace,
    lane: str,
    verb: str,
    about: str,
    options: Sequence[str] = (),
    *,
    by: str,
    variables: Mapping[str, str] | None = None,
) -> Started:
    """Starts `cleanshelf VERB ABOUT OPTIONS` in the background.

    by: name of the person who asked for it.
    variables: of its environment, besides our own.

    Raises:
        WorkspaceBusy: the last one of the lane is still running, or another command holds the workspace.
    """
    command = [sys.executable, "-m", "flows.cli", verb, *options, "--workspace", str(workspace.root), "--", about]
    with workspace.lock(verb, name=f"web-{lane}.lock"):  # of two that start at once the second sees the first
        if (before := last(workspace, lane)) and before.is_alive:
            raise WorkspaceBusy(f"what {before.by} started ({before.verb}) is still running; wait for it to end")
        with workspace.lock(f"{verb} from the page", name=DATA_LOCK if lane == DELIVERY else "lock"):
            pass  # only to see that it is free; the verb takes it itself
        out, log = _file(workspace, lane, "out"), _file(workspace, lane, "log")
        out.unlink(missing_ok=True)
        pid = process.spawn(
            ["/bin/sh", "-c", TO_FILE, str(out), *command], variables=process_variables(**variables or {}), log=log
        )
        started = Started(verb, about, list(options), by, datetime.now(UTC).isoformat(timespec="seconds"))
        content = asdict(started) | {"pid": pid, "born": process.birth(pid)}
        overwrite(_file(workspace, lane, "json"), json.dumps(content, indent=1).encode())
    return started


def last(workspace: Workspace, lane: str = RUN) -> Started | None:
    """The last verb that a page started in the lane; None if there is none."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        content = json.loads(_file(workspace, lane, "json").read_bytes())
        pid, born = content.pop("pid"), content.pop("born")
        is_alive = born is not None and process.birth(pid) == born
        printed = [] if is_alive else _lines(_file(workspace, lane, "out"))
        told = _lines(_file(workspace, lane, "log"))
        errors = [line.removeprefix("cleanshelf: ") for line in told if line.startswith("cleanshelf: ")]
        state = {"is_alive": is_alive, "has_failed": not is_alive and (bool(errors) or not printed)}
        return Started(**content | state | {"said": (errors or printed or told or [""])[-1], "printed": printed})
    return None


def document(workspace: Workspace, lane: str) -> Any:
    """The JSON document that the last verb of the lane printed; None if it has printed none, or not all of it."""
    with suppress(OSError, ValueError):
        return json.loads(_file(workspace, lane, "out").read_bytes())
    return None


def stop(workspace: Workspace, lane: str = RUN, *, by: str) -> bool:
    """Asks the verb that a page started to end, and kills it after GRACE_S; False if none is running."""
    found = last(workspace, lane)
    if not found or not found.is_alive:
        return False
    content = json.loads(_file(workspace, lane, "json").read_bytes())
    run = next((each for each in names(workspace)[:1] if _is_of(workspace, each, content["pid"])), None)
    process.end(content["pid"], born=content["born"], grace_s=GRACE_S)
    if run:
        note(workspace.runs / run, "ended", outcome="stopped", text=f"stopped by {by}")
    return True


def _is_of(workspace: Workspace, run: str, pid: int) -> bool:
    """True if the run is that of a process on this machine."""
    found = state_of(workspace, run)
    return found.state == RUNNING and found.pid == pid


def _lines(path: Path) -> list[str]:
    """The last lines of a file that are not blank; none if it is missing."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - SHOWN))
        return [line.rstrip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return []


def _file(workspace: Workspace, lane: str, suffix: str) -> Path:
    return workspace.state / f"web-{lane}.{suffix}"
