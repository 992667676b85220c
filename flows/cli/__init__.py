"""The `cleanshelf` command: one verb per flow, in the order of the pipeline.

Verbs import what they need when they run, so `--help` is instant and `recognise --model` needs neither Prefect nor DVC.
"""

from __future__ import annotations

import io
import os
import select
import sys
from pathlib import Path

import typer

from flows.cli.app import GATE, INPUT, WORLD, app
from flows.cli.show import show_error

# Importing a module registers its verbs, and the help shows them in the order of these imports.
# isort: off
from flows.cli import data, storage, model, steps, schedule, product, endpoint, web, review, mcp, about  # noqa: F401

UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # typer's own copy of click has no public name for it


def main() -> None:
    """Runs a verb. Expected errors become one line on stderr and an exit code: 2 input, 3 world, 4 gate.

    With --json they are a document on stdout too.
    """
    _have_home()
    for stream in (sys.stdout, sys.stderr):  # an old locale cannot print every label or file name
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        code = _run()
        sys.stdout.flush()
    except BrokenPipeError as error:
        code = 0 if _reader_is_gone() else show_error(error, WORLD, as_json="--json" in sys.argv[1:])
    sys.exit(code)


def _run() -> int:
    """Exit code of the verb, after its error was printed."""
    from contract import CleanShelfError
    from flows.errors import GateRefused

    as_json = "--json" in sys.argv[1:]
    try:
        return app(standalone_mode=False) or 0
    except UsageError as error:
        error.show()  # type: ignore[attr-defined]  # of every error of click; mypy sees an Exception
        return show_error(error, INPUT, as_json=as_json, in_words=False)
    except GateRefused as error:
        return show_error(error, GATE, as_json=as_json)
    except CleanShelfError as error:
        return show_error(error, INPUT if isinstance(error, ValueError) else WORLD, as_json=as_json)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer takes every broken pipe for that of stdout
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
            raise end.__context__ from None
        raise
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        return show_error(error, INPUT, as_json=as_json)


def _have_home() -> None:
    """Sets HOME if there is none, as for a container's user without an entry in passwd: libraries insist on one."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/nonexistent"  # as Debian does for users without a home


def _reader_is_gone() -> bool:
    """True if the output is not read any more, as after `| head`; what is left of it goes nowhere."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # an error is reported unasked
    if gone := bool(poll.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone
