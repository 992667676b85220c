"""Results of steps have types: mypy refuses one kind of folder where another is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import ROOT

SNIPPET = """
from flows.run.run import Run
from flows.steps.distil import train_student
from flows.steps.export import export
from flows.steps.learn import balance, calibrate
from flows.workspace.results import Answers, Calibration, Crops, DataFolder, Served, Trained

def use(run: Run, data: DataFolder, trained: Trained, answers: Answers, served: Served, crops: Crops,
        calibration: Calibration) -> None:
    calibrate(run, data, served, crops)
    calibrate(run, data, served, answers)
    balance.submit(run, data, 0, trained)
    balance.submit(run, trained, 0, data)
    train_student.submit(run, data, answers)
    train_student.submit(run, data, trained)
    export(run, data, served, crops, calibration)
    export(run, data, served, calibration, crops)
"""


@pytest.mark.slow
def test_mypy_refuses_swapped_results(tmp_path: Path) -> None:
    """Slow only without mypy's cache, which `make check` leaves behind: then it reads Prefect and numpy first."""
    snippet = tmp_path / "snippet.py"
    snippet.write_text(SNIPPET, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "--no-error-summary", str(snippet)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    refused = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error: " in line}
    swapped = {number for number, line in enumerate(SNIPPET.splitlines(), start=1) if line.strip() in (
        "calibrate(run, data, served, answers)",
        "balance.submit(run, trained, 0, data)",
        "train_student.submit(run, data, trained)",
        "export(run, data, served, calibration, crops)",
    )}  # fmt: skip
    assert refused == swapped, done.stdout
