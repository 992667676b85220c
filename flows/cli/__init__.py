"""The `cleanshelf` command: one verb per flow, in the order of the pipeline.

Imports live inside the verbs, so that `--help` is instant and `recognise --model` needs neither Prefect nor DVC.
"""

from __future__ import annotations

import io
import sys

from flows.cli.app import GATE, INPUT, WORLD, app

# Each module registers its verbs when it is imported, and the help shows them in this order.
# isort: off
from flows.cli import data, storage, model, steps, schedule, product, endpoint, about  # noqa: F401


def main() -> None:
    """Runs a verb; a foreseen error becomes one line and an exit code: 2 input, 3 world, 4 gate."""
    from contract import CleanShelfError
    from flows.errors import GateRefused

    for stream in (sys.stdout, sys.stderr):  # labels and file names may contain characters that the locale cannot print
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


def _fail(error: Exception, code: int) -> None:
    """Prints one line; only a WorldError may need more, such as the last lines of a process."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    print(f"cleanshelf: {error if code == WORLD else '; '.join(lines)}", file=sys.stderr)
    sys.exit(code)
