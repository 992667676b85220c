"""Errors of damaged or foreign tables name the file and the column."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.data.manifest import (
    FORMAT,
    INDEX,
    LABELS,
    Manifest,
    count,
    read_manifest,
    read_table,
    write_labels,
    write_table,
    write_version,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    index = {
        name: ["x", "x"] if field.type == pa.string() else [1, 2]
        for name, field in zip(INDEX.names, INDEX, strict=True)
    }
    write_table(tmp_path, index | {"id": ["a", "b"]}, name="index")
    labels = {"given_label": ["cup", "mug"], "label": ["cup", "cup"], "split": ["train", "test"], "kept": [True, False]}
    rest = {"decision": ["", "dropped"], "score": [None, 0.25], "round": [0, 1], "scored_by": ["", "fold-0-ab"]}
    write_table(tmp_path, {"id": ["a", "b"]} | labels | rest, name="labels")
    for name, columns in (("conflicts", 4), ("quarantine", 5)):
        names = ["id", "label", "source", "path"] if columns == 4 else ["path", "label", "source", "field", "reason"]
        write_table(tmp_path, {column: [] for column in names}, name=name)
    return tmp_path


def test_columns_become_arrays_and_back_to_the_same_bytes(data: Path, tmp_path: Path) -> None:
    manifest = read_manifest(data)
    assert manifest.id.tolist() == ["a", "b"]
    assert np.isnan(manifest.score[0])
    assert (manifest.score[1], manifest.scored_by.tolist()) == (0.25, ["", "fold-0-ab"])
    assert (manifest.score.dtype, manifest.kept.dtype, manifest.offset.dtype) == (np.float32, np.bool_, np.int64)
    assert manifest.classes == ["cup"], "only train photos make classes"
    before = (data / "labels.parquet").read_bytes()
    write_labels(tmp_path, manifest)
    assert (tmp_path / "labels.parquet").read_bytes() == before


def test_a_table_of_an_earlier_release_is_read_without_its_scores(data: Path) -> None:
    change(data, "score", [None, -1.5], pa.float32())
    change(data, "scored_by", None)
    manifest = read_manifest(data)
    assert manifest.scored_by.tolist() == ["", ""]
    assert np.isnan(manifest.score).all(), "these were log margins"
    assert (manifest.decision.tolist(), manifest.round.tolist()) == (["", "dropped"], [0, 1])


def test_a_table_of_format_1_is_read_and_written_in_the_present_one(data: Path, tmp_path: Path) -> None:
    before, expected = (data / "labels.parquet").read_bytes(), read_manifest(data)
    table = pq.read_table(data / "labels.parquet")
    pq.write_table(table.rename_columns([*table.column_names[:-1], "judge"]), data / "labels.parquet")
    manifest = read_manifest(data)
    assert manifest.scored_by.tolist() == ["", "fold-0-ab"]
    assert manifest.score[1] == expected.score[1] == 0.25
    assert read_table(data, name="labels").column_names == LABELS.names
    write_labels(tmp_path, manifest)
    assert (tmp_path / "labels.parquet").read_bytes() == before
    assert LABELS.names[-1] == "scored_by"


def test_targets_are_of_the_label_and_of_the_given_one(data: Path) -> None:
    change(data, "split", ["train", "train"])
    manifest = read_manifest(data)
    assert (manifest.target.tolist(), manifest.given_target.tolist()) == ([0, 0], [0, 1])


def test_classes_keep_the_given_label(data: Path) -> None:
    manifest = read_manifest(data)
    moved = dataclasses.replace(manifest, split=np.array(["train", "train"], dtype=object))
    assert isinstance(moved, Manifest)
    assert moved.classes == ["cup", "mug"]


def test_counts(data: Path) -> None:
    counts = write_version(data, parent=None, step="ingest")
    assert counts == count(data)
    assert (counts["photos"], counts["kept"], counts["dropped"], counts["train"], counts["test"]) == (2, 1, 1, 1, 0)
    text = (data / "VERSION.json").read_text()
    write_version(data, parent=None, step="ingest")
    assert (data / "VERSION.json").read_text() == text
    assert json.loads(text)["format"] == FORMAT == 2


def change(data: Path, column: str, values: list[object] | None, kind: pa.DataType | None = None) -> None:
    table = pq.read_table(data / "labels.parquet").drop_columns(column)
    if values is not None:
        table = table.append_column(column, pa.array(values, kind))
    pq.write_table(table, data / "labels.parquet")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("label", None, "column label is missing"),
        ("label", [1, 2], "column label is int64, expected string"),
        ("label", ["cup", None], "column label has 1 empty cells"),
        ("split", ["train", "training"], "column split holds 'training'; allowed are 'train', 'val', 'test'"),
        ("decision", ["", "gone"], "column decision holds 'gone'"),
        ("id", ["a", "c"], "column id differs from that of index.parquet"),
    ],
)
def test_bad_columns_are_named(data: Path, column: str, values: list[object] | None, message: str) -> None:
    change(data, column, values)
    with pytest.raises(ValueError, match=f"labels.parquet: {message}"):
        read_manifest(data)


def test_bad_files_are_named(data: Path) -> None:
    (data / "labels.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"labels\.parquet: not a readable Parquet file"):
        read_manifest(data)
    (data / "labels.parquet").unlink()
    with pytest.raises(ValueError, match=r"labels\.parquet: no such file"):
        read_manifest(data)
    assert LABELS.names[0] == "id"
