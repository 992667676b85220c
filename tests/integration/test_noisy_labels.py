"""The noisy-label benchmark as a command: the protocol of the papers, with several runs at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_full_protocol_runs_several_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "runs.jsonl"
    words = ["--protocol", "full", "--epochs", "1", "--photos", "60", "--seeds", "0", "1", "--parallel", "2"]
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "noisy_labels.py"),
        *words,
        "--methods",
        "ce",
        "--out",
        str(out),
    ]

    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"},
    )

    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(result["key"][-2:] for result in results) == ["/0", "/1"]
    assert "protocol `full`" in done.stdout
