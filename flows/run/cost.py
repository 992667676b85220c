"""Wall seconds of the steps of a run, one line of JSON per step, for the report."""

from __future__ import annotations

import functools
import inspect
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from flows.run.run import Run

SECONDS = "seconds.jsonl"
COARSE_S = 0.1  # file systems tell the time in larger steps than the clock does
P = ParamSpec("P")
R = TypeVar("R")


def timed(work: Callable[P, R], name: str) -> Callable[P, R]:
    """The function, which records its seconds in the folder of its argument `run` until the run is judged.

    Steps may run in several threads and on several machines, so each adds a line to one file.

    Args:
        name: name of the step, with parameters of the function in braces.
    """
    signature = inspect.signature(work)

    @functools.wraps(work)
    def recorded(*args: P.args, **kwargs: P.kwargs) -> R:
        began, clock = time.time(), time.perf_counter()
        result = work(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        if isinstance(run := given.get("run"), Run) and run.folder.is_dir() and not (run.folder / "run.json").exists():
            seconds = round(time.perf_counter() - clock, 3)
            line = {"step": name.format(**given), "seconds": seconds, "reused": is_older(result, began)}
            with (run.folder / SECONDS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return result

    return recorded


def is_older(result: object, time_s: float) -> bool:
    """True if a result is the folder of a cached result that was finished before this time (Unix)."""
    marker = result / "done.json" if isinstance(result, Path) else None
    return marker is not None and marker.exists() and marker.stat().st_mtime < time_s - COARSE_S


def seconds_of(run: Run) -> list[dict[str, Any]]:
    """The recorded steps in the order in which they ended: `step`, `seconds`, and `reused`: an earlier run computed it."""
    file = run.folder / SECONDS
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
