"""A scheduler as a process of its own, and what its runs come to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.scheduler.job import history
from flows.workspace import Workspace
from serving.server.process import until
from tests.command_line import ROOT

PATIENCE_S = 120.0  # several processes have to import Prefect, perhaps on a busy machine


@contextmanager
def scheduler(shop: Path, recipe: str | Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """`cleanshelf schedule`, killed at the end unless it has ended."""
    command = [sys.executable, "-m", "flows.cli", "schedule", str(recipe), "-w", str(shop), "--port", "0", *options]
    with (shop / "scheduler.log").open("ab") as log:
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def come_to(shop: Path, *outcomes: str) -> bool:
    """True if the outcomes of the scheduled runs, newest first, become these in time."""
    seen = Workspace(shop)
    return until(lambda: tuple(fired.outcome for fired in history(seen)) == outcomes, timeout_s=PATIENCE_S)


def said(shop: Path) -> str:
    return (shop / "scheduler.log").read_text()
