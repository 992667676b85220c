"""Inputs that `recognise --model` refuses: files that are not photos, and graphs that CleanShelf did not export."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.command_line import cleanshelf, refusal
from tests.deliveries import photo
from tests.graphs import write_graph

pytestmark = pytest.mark.faults


def test_bad_photos_do_not_take_the_answers_of_the_others_away(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "model.onnx")
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.jpg").symlink_to("nowhere")
    for name in ("fine.png", "last.png"):
        (tmp_path / name).write_bytes(photo(len(name)))
    reasons = {
        "fine.png": None,
        "absent.jpg": "No such file or directory",
        "text.jpg": "not a picture",
        "empty.jpg": "the file is empty (0 bytes)",
        "folder": "a folder, which --out recognises whole",
        "link.jpg": "No such file or directory",
        "last.png": None,
    }
    done = cleanshelf("recognise", *reasons, "--model", graph, "--json", cwd=tmp_path)
    assert done.returncode == 2
    answers = json.loads(done.stdout)
    assert [answer["image"] for answer in answers] == [*reasons]
    for answer in answers:
        reason = reasons[answer["image"]]
        if reason is None:
            assert (answer["error"], len(answer["products"])) == (None, 5)
            assert isinstance(answer["known"], bool)
        else:
            assert reason in answer["error"]
            assert (answer["products"], answer["known"], answer["score"]) == ([], None, None)
    assert done.stderr == (
        "cleanshelf: 5 of 7 photos have no answer, the first is absent.jpg: No such file or directory; leave them out or "
        "replace them\n"
    )
    done = cleanshelf("recognise", "fine.png", "empty.jpg", "--model", graph, cwd=tmp_path)
    header, fine, empty = done.stdout.splitlines()
    assert header.split() == ["image", "product", "probability", "known", "then", "model"]
    assert re.match(r"fine.png +product \d +0\.\d\d +(un)?known +product", fine)
    assert empty.split(maxsplit=1) == [
        "empty.jpg",
        "no answer: the file is empty (0 bytes)".ljust(len(empty.split(maxsplit=1)[1])),
    ]
    assert done.returncode == 2
    assert done.stderr == "cleanshelf: empty.jpg: the file is empty (0 bytes); leave it out or replace it\n"


def test_where_a_table_cannot_be_written_nothing_starts(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "there.csv").mkdir()
    (tmp_path / "mine.csv").touch()
    for out, message in (
        (
            "x.xlsx",
            "--out x.xlsx: a table ends in .csv, .parquet, .jsonl; the end of the name decides how it is written",
        ),
        ("x", "--out x: a table ends in .csv, .parquet, .jsonl"),
        ("there.csv", "--out there.csv is a folder; name a file in it"),
        ("none/x.csv", "--out none/x.csv: there is no folder none; make it first"),
        ("mine.csv", "mine.csv exists already; remove it or name another file"),
    ):
        done = cleanshelf("recognise", "photos", "--out", out, "--model", "none.onnx", cwd=tmp_path)
        assert refusal(done).startswith(message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.csv", "photos", "there.csv"]


def test_recognise_refuses_a_file_that_cleanshelf_did_not_export(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(photo(1))
    (tmp_path / "garbage.onnx").write_bytes(os.urandom(2000))
    foreign = write_graph(tmp_path / "foreign.onnx", metadata={"labels": ""})
    for graph in (tmp_path / "garbage.onnx", tmp_path / "none.onnx", foreign, tmp_path):
        message = refusal(cleanshelf("recognise", tmp_path / "photo.png", "--model", graph))
        assert message.startswith(str(graph))
        assert message.endswith(("export it again", "take the file of a model version"))


def test_a_photo_of_none_of_the_products_has_no_label(tmp_path: Path) -> None:
    """A graph with export.reject returns no product, which is an answer and not an error."""
    graph = write_graph(tmp_path / "model.onnx", reject=True)
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "photo.png").write_bytes(photo(1))
    arguments = ("recognise", tmp_path / "shelf" / "photo.png", "--model", graph)
    as_text, as_json = cleanshelf(*arguments), cleanshelf(*arguments, "--json")
    assert as_text.returncode == as_json.returncode == 0, as_text.stderr + as_json.stderr
    assert "none of ours" in as_text.stdout
    assert json.loads(as_json.stdout)[0]["products"] == []
    table = tmp_path / "answers.parquet"
    done = cleanshelf("recognise", tmp_path / "shelf", "--model", graph, "--out", table)
    assert done.returncode == 0, done.stderr
    [row] = pq.read_table(table).to_pylist()
    assert (row["label"], row["probability"], row["labels"], row["error"]) == (None, None, [], None)
