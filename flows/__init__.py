"""Flows: the command, Prefect, DVC and git; `main` is the console script `cleanshelf`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

INTERRUPTED = 130  # exit code of a command that Ctrl-C ended, as shells report it


def main() -> None:
    """Runs the command in the environment of our processes, which what it starts inherits.

    If the user's variables have already changed this interpreter, such as PYTHONPATH or PYTHONOPTIMIZE, another one takes its
    place before anything else is imported.
    """
    if os.environ.get("PYTHONPATH"):
        sys.path.insert(0, str(Path(__file__).parents[1]))  # before packages of the same names
    from contract.environment import process_variables

    ours = process_variables()
    changed = {name for name in os.environ if name.startswith("PYTHON") and os.environ[name] != ours.get(name)}
    if changed:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], ours)
    os.environ |= ours
    try:
        from flows.cli import main

        main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
