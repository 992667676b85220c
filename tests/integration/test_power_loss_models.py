"""Power loss keeps only what was fsynced: a trace shows that bytes reach the disk before their name does (I22)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flows.delivery.build import build_version
from models.export.calibrate import Chosen
from models.export.ood import UNCALIBRATED
from models.recipe.config import from_dict, to_dict
from serving.repository.repository import ModelRepository
from tests.deliveries import deliver
from tests.graphs import write_graph
from tests.kills import run

pytestmark = pytest.mark.faults

RECIPE = {
    "name": "tiny",
    "members": [{"backbone": "test_resnet", "size": 32}],
    "loss": {"name": "marvel", "params": {"start_epoch": 1, "run": 1}},
    "train": {"epochs": 1, "batch_size": 8, "threads": 1},
    "export": {"input_size": 40},
}
EXPORT = {"card": {}, "ensemble": {"weights": [1.0]}, "crops": {"crops": 1, "enlarge": 1.0},
          "calibration": Chosen(UNCALIBRATED).to_dict()}  # fmt: skip


def renamed_in_order(passed: Sequence[Sequence[str]]) -> list[Path]:
    """Renamed files, after a check that each was fsynced before its rename, and its folder after it."""
    synced, named = set(), []
    for number, (what, *paths) in enumerate(passed):
        if what == "fsync":
            synced.add(paths[0])
        elif what in ("rename", "replace"):
            source, target = map(Path, paths)
            inside = [path.relative_to(target) for path in target.rglob("*")] if target.is_dir() else []
            assert {str(source), *(str(source / path) for path in inside)} <= synced, (
                f"{target}: its bytes are not yet on the disk"
            )
            assert ["fsync", str(target.parent)] in [list(step) for step in passed[number:]], (
                f"{target}: its new name is not yet on the disk"
            )
            named.append(target)
    return named


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """Folder with data, recipe.json, the files of EXPORT and a network in `out`; files that its training renamed."""
    folder = tmp_path_factory.mktemp("trained")
    build_version(deliver(folder / "source", {"apple": 9, "bean": 9}, side=40), base=None, out=folder / "data")
    for name, content in (EXPORT | {"recipe": to_dict(from_dict(RECIPE))}).items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    options: list[Any] = ["--data", folder / "data", "--recipe", folder / "recipe.json", "--out", folder / "out"]
    return folder, renamed_in_order(run("models.training.train", *options, log=folder / "log").passed)


def test_training(trained: tuple[Path, list[Path]]) -> None:
    names = [path.name for path in trained[1]]
    assert {"checkpoint.pt", "samples.parquet", "network.pt"} <= set(names)
    assert names[-1] == "network.pt"


def test_export(trained: tuple[Path, list[Path]]) -> None:
    folder, _ = trained
    options: list[Any] = ["--data", folder / "data", "--networks", folder / "out" / "network.pt"]
    for name in ("recipe", *EXPORT):
        options += [f"--{name}", folder / f"{name}.json"]
    passed = run("tests.exporting", "export", folder, *options, log=folder / "log").passed
    *_, graph, done = renamed_in_order(passed)
    assert (graph.name, done.name) == ("model.onnx", "done.json")
    before = passed[: [step[-1] for step in passed].index(str(done))]
    synced = {path for what, path, *_ in before if what == "fsync"}
    assert {str(done.with_name(name)) for name in json.loads(done.read_bytes())} <= synced


def test_publication(tmp_path: Path) -> None:
    graph, root = write_graph(tmp_path / "model.onnx", external=True), tmp_path / "repository"
    passed = run("tests.version_writer", root, graph, 1, log=tmp_path / "log").passed
    assert renamed_in_order(passed)[-1] == ModelRepository(root).path(1)
