"""Runs `cleanshelf` as a user does, in a process of its own, and observes it from outside."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from serving.server.process import commands

ROOT = Path(__file__).parents[1]
PASSING = ("state", "versions", ".dvc/tmp")  # locks, logs and verified copies: what no command promises to keep

Done = subprocess.CompletedProcess[str]


def cleanshelf(*arguments: object, **popen: Any) -> Done:
    """Runs one command; `env` adds to the environment."""
    command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(ROOT)} | popen.pop("env", {})
    return subprocess.run(command, env=env, capture_output=True, encoding="utf-8", check=False, timeout=240, **popen)


def refusal(done: Done) -> str:
    """The one line in which the input was refused, with exit code 2 and nothing on stdout."""
    lines = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, ""), done
    assert [line for line in lines if line.startswith("cleanshelf: ")] == lines[-1:], done.stderr
    assert "Traceback" not in done.stderr
    return lines[-1].removeprefix("cleanshelf: ")


def snapshot(workspace: Path) -> dict[str, str]:
    """Every file and folder of a workspace that a command promises to keep, refs included, with its hash."""
    found = {}
    for path in sorted(workspace.rglob("*")):
        name = path.relative_to(workspace).as_posix()
        if not any(name == passing or name.startswith(f"{passing}/") for passing in PASSING):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return found


def processes(state: Path) -> dict[int, str]:
    """Processes of the workspace with this state folder, without this one: pid -> command line."""
    home = f"PREFECT_HOME={state / 'prefect'}".encode()
    found = {}
    for pid, argv in commands():
        with suppress(OSError):
            if home in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found[pid] = " ".join(argv)
    return found
