"""`recognise DIR --out`: a table with a row for every file, after kills, switches and bad photos."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flows.endpoint.folder import SCHEMA, photos_below, recognise_folder
from flows.endpoint.parts import Parts
from flows.errors import InputError, WorkspaceBusy
from flows.workspace import Workspace
from models.data.records import read_rows
from serving import LocalRecognizer, Recognizer
from serving.repository.repository import ModelRepository
from serving.server.control import Endpoint
from serving.server.server import LocalServer
from tests.command_line import cleanshelf, refusal
from tests.graphs import golden_images, write_graph, write_versions

ROOT = Path(__file__).parents[2]
PHOTOS = 60


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder with 60 files in nested folders, of which 3 are not photos, and with files that are to be ignored."""
    root = tmp_path / "photos"
    for number, image in enumerate(golden_images(PHOTOS - 3, size=24)):
        path = root / ("a", "b/c", "d")[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (root / "b" / "empty.jpg").touch()
    (root / "a" / os.fsdecode(b"\xff.txt")).write_text("not Unicode, not a photo")
    (root / "lost.jpg").symlink_to("nowhere")
    (root / ".hidden").write_text("x")
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "pipe")
    return root


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return write_graph(tmp_path / "model.onnx", metadata={"data_version": "data1"})


def recognise(folder: Path, out: Path, graph: Path) -> pa.Table:
    """Table of a run without interruption."""
    recognise_folder(folder, out, recognizer=LocalRecognizer(graph), model="m", rows=5)
    return pq.read_table(out)


def test_every_file_has_its_row(folder: Path, tmp_path: Path, graph: Path) -> None:
    done = cleanshelf("recognise", folder, "--out", tmp_path / "all.parquet", "--model", graph, "--json")
    assert done.returncode == 0, done
    summary, table = json.loads(done.stdout), pq.read_table(tmp_path / "all.parquet")
    rows = table.to_pylist()
    assert table.schema.equals(SCHEMA)
    assert [row["path"] for row in rows] == [*sorted(row["path"] for row in rows)]
    bad = {row["path"]: row["error"] for row in rows if row["error"] is not None}
    assert bad == {
        "a/\\xff.txt": bad["a/\\xff.txt"],
        "b/empty.jpg": "the file is empty (0 bytes)",
        "lost.jpg": "No such file or directory",
    }
    assert "not a picture" in bad["a/\\xff.txt"]
    good = [row for row in rows if row["error"] is None]
    answers = LocalRecognizer(graph).recognise([folder / row["path"] for row in good])
    for row, answer in zip(good, answers, strict=True):
        assert (row["label"], row["known"], row["data_version"]) == (answer.ranked[0][0], answer.known, "data1")
        assert row["labels"] == [label for label, _ in answer.ranked]
        assert row["probabilities"] == pytest.approx([p for _, p in answer.ranked], abs=1e-5)
        assert row["score"] == pytest.approx(answer.score, abs=1e-5)
    assert (summary["photos"], summary["bad"], summary["versions"]) == (PHOTOS, 3, {"file": PHOTOS - 3})
    assert summary["known"] == sum(row["known"] for row in good)
    assert not list(tmp_path.glob(".all*"))


def test_the_order_is_always_that_of_names(folder: Path) -> None:
    found = list(photos_below(folder))
    assert found == list(photos_below(folder))
    assert len(found) == len(set(found)) == PHOTOS


@pytest.mark.parametrize("name", ["out.csv", "OUT.JSONL"])
def test_the_suffix_decides_how_the_table_is_written(folder: Path, tmp_path: Path, graph: Path, name: str) -> None:
    expected, out = recognise(folder, tmp_path / "whole.parquet", graph), tmp_path / name
    recognizer = LocalRecognizer(graph)
    first = recognise_folder(folder, out, recognizer=recognizer, model="m", rows=7)
    assert out.read_bytes()[:1] == (b"p" if name == "out.csv" else b"{"), "a header, or an object"
    rows = [row for _, row in read_rows(out, required=SCHEMA.names)]
    for column in ("path", "label", "data_version", "error"):
        assert [row[column] or None for row in rows] == expected[column].to_pylist()
    text = {None: ("", None), True: ("true", True), False: ("false", False)}
    assert all(row["known"] in text[known] for row, known in zip(rows, expected["known"].to_pylist(), strict=True))
    (tmp_path / f".{name}.parts").mkdir()  # what a run leaves that is killed at its very end
    again = recognise_folder(folder, out, recognizer=recognizer, model="m", rows=7)
    assert (again.resumed, again.photos, again.bad, again.known) == (PHOTOS, PHOTOS, 3, first.known)
    assert again.versions == first.versions == {"file": PHOTOS - 3}
    assert not list(tmp_path.glob(".*"))


CHILD = """
import os, signal, sys
from pathlib import Path
import flows.endpoint.parts
from flows.endpoint.folder import recognise_folder
from flows.workspace import Workspace
from serving import LocalRecognizer
folder, out, graph, log, fault_point, number = sys.argv[1:]

class RecordingRecognizer(LocalRecognizer):
    def stream(self, photos):
        with open(log, "a") as file:
            yield from super().stream(path for path in photos if file.write(ascii(os.path.relpath(path, folder)) + "\\n"))

def killing(function):
    calls = iter(range(1, 10**9))
    def call(*arguments):
        done = function(*arguments)
        if next(calls) == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
        return done
    return call

if fault_point == "sync":
    flows.endpoint.parts.sync = killing(flows.endpoint.parts.sync)
progress = killing(lambda done: None) if fault_point == "photo" else lambda done: None
recognise_folder(Path(folder), Path(out), recognizer=RecordingRecognizer(Path(graph)), model="m", rows=5, progress=progress)
"""


@pytest.mark.faults
@pytest.mark.parametrize(
    ("fault_point", "number"),
    [("photo", 1), ("photo", 23), ("photo", 61), ("sync", 1), ("sync", 2), ("sync", 15), ("sync", 24), ("sync", 25), ("sync", 26)],
)  # fmt: skip  # 24 syncs for 12 parts, 2 for the table: before and after renames, in the middle and at the end
def test_a_killed_run_resumes_where_it_stopped(
    folder: Path, tmp_path: Path, graph: Path, fault_point: str, number: int
) -> None:
    expected, out = recognise(folder, tmp_path / "whole.parquet", graph), tmp_path / "killed.parquet"
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    command = [sys.executable, "-c", CHILD, folder, out, graph]
    run = subprocess.run([*command, first, fault_point, str(number)], cwd=ROOT, capture_output=True, check=False)
    assert run.returncode == -9, run.stderr.decode()
    parts = sorted(tmp_path.glob(".killed.parquet.parts/[0-9]*.parquet"))
    kept = {path for part in parts for path in pq.read_table(part)["path"].to_pylist()}
    subprocess.run([*command, second, "nothing", "0"], cwd=ROOT, check=True)
    assert_same(pq.read_table(out), expected)
    recognised = set(second.read_text().split("\n")) if second.exists() else set()
    assert not recognised & {repr(path) for path in kept}
    assert len(kept) == 5 * len(parts)
    assert not list(tmp_path.glob(".killed*"))
    assert pq.ParquetFile(out).num_row_groups == 12


def assert_same(table: pa.Table, expected: pa.Table) -> None:
    """Checks that tables are equal, and probabilities nearly: ONNX Runtime rounds differently in other batches."""
    exact = ["path", "label", "known", "labels", "model_version", "data_version", "error"]
    assert table.select(exact).equals(expected.select(exact))
    for name in ("probability", "score"):
        assert table[name].to_pylist() == pytest.approx(expected[name].to_pylist(), abs=1e-5, nan_ok=True)


def test_photos_that_were_added_meanwhile_are_recognised_too(folder: Path, tmp_path: Path, graph: Path) -> None:
    out, log = tmp_path / "out.parquet", tmp_path / "log"
    command = [sys.executable, "-c", CHILD, folder, out, graph, log, "sync", "10"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == -9
    for name in ("a/0a.png", "z.png"):  # before and after the photos that were recognised
        Image.fromarray(golden_images(1, size=24)[0]).save(folder / name)
    done = recognise_folder(folder, out, recognizer=LocalRecognizer(graph), model="m")
    assert (done.photos, done.resumed) == (PHOTOS + 2, 25)
    assert sorted(pq.read_table(out)["path"].to_pylist()) == sorted(map(_printable, photos_below(folder)))


def _printable(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def test_a_resumed_run_with_another_input_is_refused(folder: Path, tmp_path: Path, graph: Path) -> None:
    out = tmp_path / "out.parquet"
    command = [sys.executable, "-c", CHILD, folder, out, graph, tmp_path / "log", "sync", "10"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == -9
    message = refusal(cleanshelf("recognise", folder, "--out", out, "--model", graph))
    assert message.startswith(f'{out} was begun with {{"folder": "{folder}", "model": "m"}}')
    assert message.endswith(f"remove {tmp_path / '.out.parquet.parts'} to start over")
    with pytest.raises(InputError, match="was begun with"):
        recognise_folder(folder / "a", out, recognizer=LocalRecognizer(graph), model="m")
    with Parts.of(out, SCHEMA, plan={"folder": str(folder), "model": "m"}), pytest.raises(WorkspaceBusy):
        recognise(folder, out, graph)
    assert recognise(folder, out, graph).num_rows == PHOTOS


def test_an_existing_file_is_not_overwritten(folder: Path, tmp_path: Path, graph: Path) -> None:
    out = tmp_path / "out.parquet"
    out.write_text("mine")
    assert "exists already" in refusal(cleanshelf("recognise", folder, "--out", out, "--model", graph))
    assert out.read_text() == "mine"
    for wrong in ([folder / "nowhere"], [folder / "a", folder / "b"]):
        message = refusal(cleanshelf("recognise", *wrong, "--out", tmp_path / "new.parquet", "--model", graph))
        assert "folder" in message
    assert not list(tmp_path.glob(".*"))


@pytest.mark.triton
def test_the_endpoint_of_a_workspace_answers(
    folder: Path, tmp_path: Path, local_server: Callable[..., LocalServer]
) -> None:
    workspace = Workspace.init(tmp_path / "shop")
    repository = ModelRepository(workspace.repository)
    write_versions(repository, tmp_path, 1)
    repository.configure([1])
    out = tmp_path / "out.parquet"
    assert "no endpoint is running" in refusal(cleanshelf("recognise", folder, "--out", out, "-w", workspace.root))
    server = local_server(workspace.repository, workspace.state)
    server.start()
    try:
        done = cleanshelf("recognise", folder, "--out", out, "-w", workspace.root)
        single = cleanshelf("recognise", folder / "a" / "0.png", "-w", workspace.root, "--json")
    finally:
        server.stop()
    assert done.returncode == single.returncode == 0, (done, single)
    assert 'versions         {"1": 57}' in done.stdout
    expected = recognise(folder, tmp_path / "local.parquet", repository.path(1) / "model.onnx")
    assert pq.read_table(out)["label"].equals(expected["label"])
    assert pq.read_table(out)["error"].equals(expected["error"])
    assert json.loads(single.stdout)[0]["products"][0]["label"] == expected["label"][0].as_py()


@pytest.mark.triton
def test_a_switch_during_a_run_is_logged(
    folder: Path, tmp_path: Path, local_server: Callable[..., LocalServer], caplog: pytest.LogCaptureFixture
) -> None:
    repository = ModelRepository(tmp_path / "repository")
    write_versions(repository, tmp_path, 1, 2)
    repository.configure([1])
    server = local_server(repository.root, tmp_path / "state")
    access = server.start().access

    def progress(done: int) -> None:
        if done == 10:
            with Endpoint(access) as endpoint:
                endpoint.switch(repository, 2)

    try:
        with Recognizer(access, in_flight=1) as recognizer, caplog.at_level(logging.WARNING, "cleanshelf"):
            out = tmp_path / "out.parquet"
            done = recognise_folder(folder, out, recognizer=recognizer, model="endpoint", progress=progress)
    finally:
        server.stop()
    rows = [row for row in pq.read_table(out).to_pylist() if row["error"] is None]
    assert done.versions == {name: sum(str(row["model_version"]) == name for row in rows) for name in ("1", "2")}
    assert min(done.versions.values()) > 0
    assert {(row["model_version"], row["data_version"]) for row in rows} == {(1, "data1"), (2, "data2")}
    assert "model version 2 answers from photo" in caplog.text
