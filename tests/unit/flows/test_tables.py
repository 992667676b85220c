"""Tables of answers as CSV and JSON lines: what a program and a spreadsheet make of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.endpoint.folder import SCHEMA
from flows.workspace.tables import write_table
from models.data.records import read_rows

ROWS: list[dict[str, Any]] = [
    {
        "path": "=cmd.jpg",
        "label": "=1+1",
        "probability": 0.9,
        "score": 1e-7,
        "known": True,
        "labels": ["=1+1", 'Kid\'s "best", größe', "-196 °C"],
        "probabilities": [0.9, 0.1, 0.0],
        "model_version": 3,
        "data_version": "12ab",
        "error": None,
    },
    {"path": "a,b;\n\"c\".jpg", "label": "-196 °C", "probability": 1 / 3, "score": 0.25, "known": False, "labels": [],
     "probabilities": []},
    {"path": "写真.jpg", "error": "the file is empty (0 bytes)"},
]  # fmt: skip


def written(path: Path) -> Path:
    parts = [pa.Table.from_pylist(part, schema=SCHEMA) for part in (ROWS[:2], ROWS[2:])]
    write_table(parts, path, schema=SCHEMA, suffix=path.suffix)
    return path


def test_csv(tmp_path: Path) -> None:
    with written(tmp_path / "a.CSV").open(encoding="utf-8", newline="") as file:
        header, first, second, third = csv.reader(file, strict=True)
    assert header == SCHEMA.names
    assert first[:5] == ["./=cmd.jpg", "'=1+1", "0.9", "1e-07", "true"]
    assert json.loads(first[5]) == ROWS[0]["labels"]
    assert first[6:] == ["[0.9, 0.1, 0.0]", "3", "12ab", ""]
    assert second == ['a,b;\n"c".jpg', "'-196 °C", "0.33333334", "0.25", "false", "[]", "[]", "", "", ""]
    assert third == ["写真.jpg", *[""] * 8, "the file is empty (0 bytes)"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_what_was_written_is_read_again(tmp_path: Path, suffix: str) -> None:
    rows = [row for _, row in read_rows(written(tmp_path / f"a{suffix}"), required=("label", "score", "error"))]
    assert [row["label"] or None for row in rows] == ["=1+1", "-196 °C", None]
    assert [row["error"] or None for row in rows] == [None, None, "the file is empty (0 bytes)"]
    assert np.float32(rows[0]["score"]) == np.float32(1e-7)


def test_json_lines_and_parquet(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in written(tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    empty = dict.fromkeys(SCHEMA.names)
    assert lines == [empty | row for row in [ROWS[0], ROWS[1] | {"probability": 0.33333334}, ROWS[2]]]
    assert "größe" in (tmp_path / "a.jsonl").read_text(encoding="utf-8")
    table = pq.read_table(written(tmp_path / "a.parquet"))
    assert table.schema.equals(SCHEMA)
    assert table["path"].to_pylist() == [row["path"] for row in ROWS]
