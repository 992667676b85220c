"""Output of the verbs: a table, pairs or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def show(content: Any, *, as_json: bool, say: Callable[[], None]) -> None:
    """Prints `content` as JSON, or calls `say`, which prints it for people."""
    if as_json:
        from flows.report.run_report import to_json

        print(to_json(content))
    else:
        say()


def table(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    """Prints a row for each dictionary; columns that it lacks stay empty."""
    from flows.report.terminal import print_table

    print_table(columns, rows)


def pairs(content: dict[str, Any]) -> None:
    """Prints a line for each key."""
    for key, value in content.items():
        print(f"{key:16} {value if not isinstance(value, dict | list) else json.dumps(value, ensure_ascii=False)}")
