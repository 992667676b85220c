"""Output of the verbs: a table, pairs or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

PIECE = 65_536  # rows that are written at a time


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


def check_new(out: Path | None) -> None:
    """Checks that `--out` names a table that can be written and does not exist, before anything slow starts.

    Raises:
        InputError: the suffix is unknown, the folder is missing, or the file exists.
    """
    from flows.endpoint.tables import check_out
    from flows.errors import InputError

    if out:
        check_out(out)
        if out.exists():
            raise InputError(f"--out {out} exists already; remove it or name another file")


def write_rows(out: Path | None, rows: pa.Table) -> None:
    """Writes the rows to `--out`, if it was given; the file appears when it is complete."""
    from flows.endpoint.tables import write_table
    from flows.workspace.files import or_disk_full

    if out:
        part = out.with_name(f".{out.name}.part")
        with or_disk_full(f"writing {out}"):
            try:
                pieces = (rows.slice(start, PIECE) for start in range(0, len(rows), PIECE))
                write_table(pieces, part, schema=rows.schema, suffix=out.suffix)
                part.rename(out)
            finally:
                part.unlink(missing_ok=True)
