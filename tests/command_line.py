"""Runs `cleanshelf` as a user does, in a separate process, and observes it from outside."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from serving.server.process import commands

ROOT = Path(__file__).parents[1]
VOLATILE = ("state", "versions", ".dvc/tmp")  # locks, logs and verified copies, which no command promises to keep

Completed = subprocess.CompletedProcess[str]


def cleanshelf(*arguments: object, under: Sequence[str] = (), **popen: Any) -> Completed:
    """Runs one command in an empty home folder, which stays empty.

    under: a command line that runs the command, such as strace.
    popen: arguments of subprocess.run; `env` adds to the environment.
    """
    command = [*under, sys.executable, "-P", "-m", "flows.cli", *map(str, arguments)]
    with TemporaryDirectory() as home:
        env = os.environ | {"PYTHONPATH": str(ROOT), "HOME": home} | popen.pop("env", {})
        done = subprocess.run(
            command, env=env, capture_output=True, encoding="utf-8", check=False, timeout=240, **popen
        )
        assert os.listdir(home) == [], f"{arguments} left files in the home folder"
    return done


def refusal(done: Completed) -> str:
    """Message that refuses the input, after a check of exit code 2, empty stdout and a single line of error."""
    lines = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, ""), done
    assert [line for line in lines if line.startswith("cleanshelf: ")] == lines[-1:], done.stderr
    assert "Traceback" not in done.stderr
    return lines[-1].removeprefix("cleanshelf: ")


def snapshot(workspace: Path) -> dict[str, str]:
    """Hashes of the files that commands promise to keep, git refs included, by path; a folder has an empty hash."""
    found = {}
    for file in sorted(workspace.rglob("*")):
        name = file.relative_to(workspace).as_posix()
        if not any(name == path or name.startswith(f"{path}/") for path in VOLATILE):
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
    return found


def processes(state: Path) -> dict[int, str]:
    """Command lines by pid of the workspace's processes, which its state folder identifies."""
    home = f"PREFECT_HOME={state / 'prefect'}".encode()
    found = {}
    for pid, argv in commands():
        with suppress(OSError):
            if home in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found[pid] = " ".join(argv)
    return found
