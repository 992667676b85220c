"""Runs a scheduler in a separate process, and reads the outcomes of its runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.scheduler.record import history
from flows.workspace import Workspace
from serving.server.process import until
from tests.command_line import ROOT

PATIENCE_S = 120.0  # several processes have to import Prefect, perhaps on a busy machine


@contextmanager
def scheduler(
    shop: Path, recipe: str | Path, *options: str, folder: Path = ROOT, **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs `cleanshelf schedule` for the duration of the block, and kills it if it is still running then.

    folder: its current folder.
    variables: added to its environment.
    """
    command = [
        sys.executable,
        "-P",
        "-m",
        "flows.cli",
        "schedule",
        str(recipe),
        "-w",
        str(shop),
        "--port",
        "0",
        *options,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    with (shop / "scheduler.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for_outcomes(shop: Path, *outcomes: str) -> bool:
    """True as soon as the outcomes of the scheduled runs, newest first, are these; False after PATIENCE_S."""
    workspace = Workspace(shop)
    return until(lambda: tuple(run.outcome for run in history(workspace)) == outcomes, timeout_s=PATIENCE_S)


def scheduler_log(shop: Path) -> str:
    """Output of the scheduler so far."""
    return (shop / "scheduler.log").read_text()


def tracebacks(shop: Path) -> list[str]:
    """Lines of the scheduler's output before a traceback.

    Those of an exception that Python ignores do not count: Prefect's handler of SIGTERM raises, now and then in mid-collection
    of garbage.
    """
    lines = scheduler_log(shop).splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("Traceback")]
    return [before for number in starts if not (before := lines[max(number - 1, 0)]).startswith("Exception ignored in")]
