"""The `cleanshelf` command: one verb per flow, in the order of the pipeline.

Verbs import what they need when they run, so `--help` is instant and `recognise --model` needs neither Prefect nor DVC.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

from flows.cli.app import GATE, INPUT, WORLD, app

# Importing a module registers its verbs, and the help shows them in the order of these imports.
# isort: off
from flows.cli import data, storage, model, steps, schedule, product, endpoint, about  # noqa: F401


def main() -> None:
    """Runs a verb. Expected errors become one line on stderr and an exit code: 2 input, 3 world, 4 gate."""
    from contract import CleanShelfError
    from flows.errors import GateRefused

    _have_home()
    for stream in (sys.stdout, sys.stderr):  # an old locale cannot print every label or file name
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        app()
    except GateRefused as error:
        _fail(error, GATE)
    except CleanShelfError as error:
        _fail(error, INPUT if isinstance(error, ValueError) else WORLD)
    except OSError as error:
        if error.errno is None:
            raise
        _fail(error, INPUT)


def _have_home() -> None:
    """Sets HOME if there is none, as for a container's user without an entry in passwd: libraries insist on one."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/nonexistent"  # as Debian does for users without a home


def _fail(error: Exception, code: int) -> None:
    """Prints the error in one line; an error of the world may take more, such as the last lines of a process."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    print(f"cleanshelf: {error if code == WORLD else '; '.join(lines)}", file=sys.stderr)
    sys.exit(code)
