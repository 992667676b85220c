"""Answers that the current model gave when it was exported, and the test photos about which it is still asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from durable import sha256
from flows.delivery.build import build_version
from flows.run.measure import answered_before, unanswered
from flows.run.run import ResultCache, code_hash
from flows.workspace import Workspace
from flows.workspace.results import DataFolder
from models.data.manifest import read_manifest
from models.export.patch import stamp
from tests.deliveries import deliver
from tests.graphs import write_graph


@pytest.fixture
def results(tmp_path: Path) -> ResultCache:
    return ResultCache(Workspace(tmp_path / "shop"))


def export(results: ResultCache, photos: list[str], *, code: str) -> str:
    """SHA-256 of a graph whose export answered these photos."""
    folder = results.folder("export", code)
    folder.mkdir(parents=True)
    write_graph(folder / "model.onnx")
    stamp(folder / "model.onnx", {"code_hash": code})
    np.savez(
        folder / "answers.npz",
        photo=np.array(photos, "S64"),
        ids=np.zeros((len(photos), 5)),
        probability=np.zeros(len(photos)),
    )
    (folder / "done.json").write_text(
        json.dumps({name: sha256(folder / name) for name in ("model.onnx", "answers.npz")})
    )
    return sha256(folder / "model.onnx")


def test_only_photos_that_came_since_the_export_are_asked_about(results: ResultCache, tmp_path: Path) -> None:
    build_version(deliver(tmp_path / "delivery", {"apple": 30, "bean": 30}, side=24), base=None, out=tmp_path / "data")
    data = DataFolder(tmp_path / "data")
    manifest = read_manifest(data)
    tested = manifest.id[(manifest.split == "test") & manifest.kept].tolist()
    assert len(tested) > 3
    graph = export(results, [*tested[2:], "0" * 64], code=code_hash())
    found = answered_before(results, graph)
    assert found is not None
    assert found.name == "answers.npz"
    assert unanswered(results, data, graph) == 2
    assert unanswered(results, data, "f" * 64) == len(tested), "a graph that was not exported here"


@pytest.mark.parametrize("fault", ["other source", "damaged", "no answers"])
def test_answers_that_may_differ_are_not_used(results: ResultCache, fault: str) -> None:
    graph = export(results, ["a"], code="of another source" if fault == "other source" else code_hash())
    (folder,) = results.workspace.runs.glob("stages/*")
    if fault == "damaged":
        (folder / "answers.npz").write_bytes(b"something else")
    if fault == "no answers":
        (folder / "answers.npz").unlink()
    assert answered_before(results, graph) is None
