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
    shop: Path, recipe: str | Path, *options: str, folder: Path = ROOT, python: str = sys.executable, **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs `cleanshelf schedule` for the duration of the block, and kills it if it is still running then.

    folder: its current folder.
    python: the interpreter, whose packages it uses.
    variables: added to its environment.
    """
    command = [
        python,
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

    One does not count: Prefect's handler of SIGTERM raises, and if that happens while Python collects garbage, Python prints
    and ignores the exception.
    """
    parts = scheduler_log(shop).split("Traceback (most recent call last):")
    heads = [part.rstrip().rpartition("\n")[2] for part in parts]
    return [
        head
        for head, after in zip(heads, parts[1:], strict=False)
        if not (head.startswith("Exception ignored in") and "_prefect_sigterm_handler" in after)
    ]
