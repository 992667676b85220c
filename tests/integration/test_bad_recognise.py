"""What `recognise --model` is asked in vain: no photo, or a file that is not ours."""

from __future__ import annotations

import os
from pathlib import Path

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
