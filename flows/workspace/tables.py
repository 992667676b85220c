"""Writes a table as the suffix of its file says: CSV, Parquet or JSON lines."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flows.errors import InputError
from flows.workspace.files import or_disk_full
from models.data.records import FORMULAS, SUFFIXES, guarded

PIECE = 65_536  # rows that are converted at a time


def check_out(out: Path) -> None:
    """Checks that a table can be written to `out`, before anything else starts.

    Raises:
        InputError: the suffix is unknown, or the folder is missing or cannot be written.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"--out {out}: a table ends in {', '.join(SUFFIXES)}; the end of the name decides how it is written"
        )
    if out.is_dir():
        raise InputError(f"--out {out} is a folder; name a file in it")
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}; make it first")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise InputError(f"--out {out}: the folder {out.parent} cannot be written; name another")


def check_new(out: Path) -> None:
    """Checks a table that must not exist yet as `check_out` does.

    Raises:
        InputError: it exists, or `check_out` refuses it.
    """
    check_out(out)
    if out.exists():
        raise InputError(f"--out {out} exists already; remove it or name another file")


def write_new(rows: pa.Table, out: Path) -> None:
    """Writes a table that `check_new` has passed; the file appears when it is complete."""
    part = out.with_name(f".{out.name}.part")
    with or_disk_full(f"writing {out}"):
        try:
            pieces = (rows.slice(start, PIECE) for start in range(0, len(rows), PIECE))
            write_table(pieces, part, schema=rows.schema, suffix=out.suffix)
            part.rename(out)
        finally:
            part.unlink(missing_ok=True)


def write_table(parts: Iterable[pa.Table], file: Path, *, schema: pa.Schema, suffix: str) -> None:
    """Writes the parts of a table as one file, with one part in memory at a time.

    CSV has lists as JSON and nothing for a null. A text that a spreadsheet would compute gets an apostrophe in front,
    which `read_rows` takes away; such a path gets "./" instead.

    Args:
        suffix: of the table, one of SUFFIXES in any case; `file` may have another.
    """
    if suffix.lower() == ".parquet":
        with pq.ParquetWriter(file, schema) as writer:
            for part in parts:
                writer.write_table(part)
        return
    with file.open("w", encoding="utf-8", newline="") as stream:
        rows = (_shortened(row) for part in parts for row in part.to_pylist())
        if suffix.lower() == ".csv":
            lines = csv.writer(stream, lineterminator="\n")
            lines.writerow(schema.names)
            lines.writerows([_cell(name, value) for name, value in row.items()] for row in rows)
        else:
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _shortened(row: dict[str, Any]) -> dict[str, Any]:
    """The row with numbers in no more digits than a float32 has."""
    return {name: [*map(_short, value)] if isinstance(value, list) else _short(value) for name, value in row.items()}


def _short(value: Any) -> Any:
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _cell(name: str, value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "" if value is None else str(value).lower()
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    if name == "path" and value.startswith(FORMULAS):
        return f"./{value}"
    return guarded(value) if isinstance(value, str) else str(value)
