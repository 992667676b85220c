"""Inputs that `recognise --model` refuses: no photo, or a file that CleanShelf did not export."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.command_line import cleanshelf, refusal
from tests.deliveries import photo
from tests.graphs import write_graph

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("name", ["absent.jpg", "text.jpg", "empty.jpg", "folder"])
def test_recognise_what_is_no_photo(tmp_path: Path, name: str) -> None:
    graph = write_graph(tmp_path / "model.onnx")
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "fine.png").write_bytes(photo(1))
    said = refusal(cleanshelf("recognise", tmp_path / "fine.png", tmp_path / name, "--model", graph))
    assert said.startswith(f"{tmp_path / name}: ")
    assert said.endswith("; leave it out or replace it")


def test_recognise_with_a_file_that_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(photo(1))
    (tmp_path / "garbage.onnx").write_bytes(os.urandom(2000))
    foreign = write_graph(tmp_path / "foreign.onnx", metadata={"labels": ""})
    for graph in (tmp_path / "garbage.onnx", tmp_path / "none.onnx", foreign, tmp_path):
        said = refusal(cleanshelf("recognise", tmp_path / "photo.png", "--model", graph))
        assert said.startswith(str(graph))
        assert said.endswith(("export it again", "take the file of a model version"))


def test_recognise_what_is_none_of_the_products(tmp_path: Path) -> None:
    """A graph with export.reject names nothing then; that is an answer and no error."""
    graph = write_graph(tmp_path / "model.onnx", reject=True)
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "photo.png").write_bytes(photo(1))
    asked = ("recognise", tmp_path / "shelf" / "photo.png", "--model", graph)
    shown, told = cleanshelf(*asked), cleanshelf(*asked, "--json")
    assert shown.returncode == told.returncode == 0, shown.stderr + told.stderr
    assert "none of ours" in shown.stdout
    assert json.loads(told.stdout)[0]["products"] == []
    table = tmp_path / "answers.parquet"
    done = cleanshelf("recognise", tmp_path / "shelf", "--model", graph, "--out", table)
    assert done.returncode == 0, done.stderr
    [row] = pq.read_table(table).to_pylist()
    assert (row["label"], row["probability"], row["labels"], row["error"]) == (None, None, [], None)
