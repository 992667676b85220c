"""Output of the verbs: a table, pairs or JSON, and errors."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flows.cli.app import WORLD

_documents: list[Any] = []  # printed on stdout: one at most, so that a reader can parse all of it


def show(content: Any, *, as_json: bool, say: Callable[[], None]) -> None:
    """Prints `content` as JSON, or calls `say`, which prints it for people."""
    if as_json:
        from flows.report.run_report import to_json

        _documents.append(content)
        print(to_json(content), flush=True)
    else:
        say()


def show_error(error: Exception, code: int, *, as_json: bool, in_words: bool = True) -> int:
    """Prints an error on stderr, and with `as_json` as a document on stdout unless it has one; returns the exit code.

    An error of input is one line; one of the world may take more, such as the last lines of a process.
    """
    in_full = getattr(error, "format_message", None)  # click's errors of usage: names the option too
    text = in_full() if in_full else str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{os_path(error.filename)}: {error.strerror}"
    if code != WORLD:
        text = "; ".join(line.strip() for line in text.splitlines() if line.strip())
    if as_json and not _documents:
        show({"error": {"kind": type(error).__name__, "message": text, "exit": code} | _details(error)},
             as_json=True, say=lambda: None)  # fmt: skip
    if in_words:
        print(f"cleanshelf: {text}", file=sys.stderr)
    return code


def os_path(name: object) -> str:
    """The name of a file in an OSError, which may be text, bytes or a number."""
    return name.decode(errors="backslashreplace") if isinstance(name, bytes) else str(name)


def _details(error: Exception) -> dict[str, Any]:
    """Further facts that an error of ours carries: the reasons of a gate and the run, or what a purge would affect."""
    facts = {name: getattr(error, name) for name in ("reasons", "affected") if getattr(error, name, None)}
    if report := getattr(error, "report", None):
        facts |= {
            "run": report.run,
            "report_file": f"runs/{report.run}/report.md",
            "report": dataclasses.asdict(report),
        }
    return facts


@contextmanager
def refusals_shown(*, as_json: bool) -> Iterator[None]:
    """Prints the report of a run whose model is refused in the block, as that of a published one, and raises the refusal.

    With `as_json` the refusal itself is printed with its report (`show_error`).
    """
    from flows.errors import GateRefused
    from flows.report.terminal import print_report

    try:
        yield
    except GateRefused as error:
        if error.report is not None and not as_json:
            print_report(error.report)
        raise


def table(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    """Prints a row for each dictionary; columns that it lacks stay empty."""
    from flows.report.terminal import print_table

    print_table(columns, rows)


def pairs(content: dict[str, Any]) -> None:
    """Prints a line for each key."""
    for key, value in content.items():
        print(f"{key:16} {value if not isinstance(value, dict | list) else json.dumps(value, ensure_ascii=False)}")
