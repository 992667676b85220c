"""Cached results are found again by what they depend on, as long as their files are undamaged."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flows.errors import CorruptObject, WorldError
from flows.run import inputs as inputs_module
from flows.run import run as module
from flows.run.inputs import ended_before, inputs
from flows.run.run import DECIDES, Run, code_hash, deciding_hash, is_finished
from flows.workspace import Workspace
from models.recipe.config import Loss, Recipe, Train, from_dict
from tests.breaking import ways

REPOSITORY = Path(__file__).parents[3]
FILES = ("network.pt", "scores")  # of Work


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(Workspace(tmp_path), Recipe(name="r"), id="1")


class Work:
    """Writes two files, and counts the calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "network.pt").write_bytes(b"weights")
        (folder / "scores").write_text("1")


def test_the_same_result_is_found_again(run: Run) -> None:
    work = Work()
    first = run.cached("train", "data", run.recipe.loss, files=FILES, work=work)
    later = dataclasses.replace(run, id="2").cached("train", "data", run.recipe.loss, files=FILES, work=work)
    assert (first, work.calls) == (later, 1)
    assert sorted(path.name for path in first.iterdir()) == ["done.json", "network.pt", "scores"]


def test_a_result_is_named_by_everything_it_depends_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    work, recipe = Work(), run.recipe
    folders = [
        run.cached("train", "data", recipe.loss, recipe.train, files=FILES, work=work),
        run.cached("fold", "data", recipe.loss, recipe.train, files=FILES, work=work),
        run.cached("train", "other data", recipe.loss, recipe.train, files=FILES, work=work),
        run.cached("train", "data", Loss(params={"q": 0.5}), recipe.train, files=FILES, work=work),
        run.cached("train", "data", recipe.loss, Train(epochs=2), files=FILES, work=work),
    ]
    monkeypatch.setattr(module, "code_hash", lambda: "changed")
    folders.append(run.cached("train", "data", recipe.loss, recipe.train, files=FILES, work=work))
    assert len(set(folders)) == work.calls == 6


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the source that both hashes read."""
    for part in DECIDES:
        copy = shutil.copytree if (REPOSITORY / part).is_dir() else shutil.copy
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        copy(REPOSITORY / part, tmp_path / part)
    monkeypatch.setattr(module, "REPOSITORY", tmp_path)
    return tmp_path


COMPUTING = ["models/losses/lq.py", "models/decisions.py", "pixels/__init__.py", "contract/__init__.py"]
DECIDING = [
    "flows/retrain.py",
    "flows/gate/gates.py",
    "flows/gate/verdict.py",
    "flows/run/measure.py",
    *(f"flows/steps/{name}.py" for name in ("clean", "gate", "learn", "selection")),
]


@pytest.mark.parametrize("changed", [*COMPUTING, *DECIDING])
def test_a_run_depends_on_all_source_that_decides_and_cached_results_on_what_computes_them(
    source: Path, changed: str
) -> None:
    computes, decides = code_hash.__wrapped__(), deciding_hash.__wrapped__()
    text = (source / changed).read_text()
    (source / changed).write_text(text + "# changed\n")
    assert deciding_hash.__wrapped__() != decides
    assert (code_hash.__wrapped__() == computes) == (changed in DECIDING), "a changed gate leaves trainings valid"
    (source / changed).write_text(text)
    assert (code_hash.__wrapped__(), deciding_hash.__wrapped__()) == (computes, decides)
    (source / changed).rename(source / changed.replace(".py", "_.py"))
    if changed not in DECIDES:
        assert deciding_hash.__wrapped__() != decides


def test_source_that_decides_nothing_is_not_hashed(source: Path) -> None:
    decides = deciding_hash.__wrapped__()
    (source / "flows" / "doctor.py").write_text("1")
    assert deciding_hash.__wrapped__() == decides


@pytest.mark.parametrize("damage", ["bit", "gone", "marker", "empty marker"])
def test_a_damaged_result_is_computed_again(run: Run, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    work = Work()
    folder = run.cached("train", files=FILES, work=work)
    match damage:
        case "bit":
            (folder / "network.pt").write_bytes(b"wEights")
        case "gone":
            (folder / "scores").unlink()
        case "marker":
            (folder / "done.json").write_bytes((folder / "done.json").read_bytes()[:-20])
        case "empty marker":
            (folder / "done.json").write_bytes(b"")
    (folder / "stale").touch()
    assert run.cached("train", files=FILES, work=work) == folder
    assert work.calls == 2
    assert (folder / "network.pt").read_bytes() == b"weights"
    assert not (folder / "stale").exists(), "nothing of a damaged result is reused"
    assert folder.name in caplog.text
    run.cached("train", files=FILES, work=work)
    assert work.calls == 2


def test_a_failed_step_continues_in_its_own_folder(run: Run) -> None:
    def fail(folder: Path) -> None:
        (folder / "checkpoint.pt").write_bytes(b"weights")
        (folder / ".network.pt.123").write_bytes(b"half")
        (folder / ".model.onnx.123").mkdir()
        (folder / ".model.onnx.123" / "model.onnx").touch()
        raise RuntimeError("killed")

    def go_on(folder: Path) -> None:
        (folder / "checkpoint.pt").rename(folder / "network.pt")

    with pytest.raises(RuntimeError, match="killed"):
        run.cached("train", files=["network.pt"], work=fail)
    folder = run.cached("train", files=["network.pt"], work=go_on)
    assert sorted(path.name for path in folder.iterdir()) == ["done.json", "network.pt"]
    assert is_finished(folder)


@pytest.mark.parametrize("left", [None, b""], ids=["no file", "an empty file"])
def test_a_step_without_its_files_is_not_finished(run: Run, left: bytes | None) -> None:
    def nothing(folder: Path) -> None:
        (folder / "network.pt").write_bytes(b"weights")
        if left is not None:
            (folder / "scores").write_bytes(left)

    with pytest.raises(WorldError, match=r"^train ended without scores in .*; run the same command again$"):
        run.cached("train", files=FILES, work=nothing)
    work = Work()
    folder = run.cached("train", files=FILES, work=work)
    assert (work.calls, is_finished(folder, FILES)) == (1, True)


def test_a_result_that_was_kept_without_its_files_is_computed_again(run: Run) -> None:
    empty = run.cached("train", files=[], work=lambda folder: None)
    assert is_finished(empty)
    work = Work()
    assert run.cached("train", files=FILES, work=work) == empty
    assert work.calls == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from flows.run import run
from flows.workspace import Workspace
from models.recipe.config import Recipe

def work(folder):
    (folder / "network.pt").write_bytes(b"half")
    if sys.argv[2] == "in work":
        os.kill(os.getpid(), signal.SIGKILL)

def die(source, target):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[2] == "before the rename":
    os.replace = die
run.Run(Workspace(Path(sys.argv[1])), Recipe(name="r"), id="1").cached("train", files=["network.pt"], work=work)
"""


@pytest.mark.faults
@pytest.mark.parametrize("moment", ["in work", "before the rename"])
def test_a_killed_step_is_not_taken_for_finished(run: Run, moment: str) -> None:
    command = [sys.executable, "-c", KILLED, str(run.workspace.root), moment]
    assert subprocess.run(command, cwd=REPOSITORY, check=False).returncode == -signal.SIGKILL
    work = Work()
    folder = run.cached("train", files=FILES, work=work)
    assert work.calls == 1
    assert sorted(os.listdir(folder)) == ["done.json", "network.pt", "scores"]
    assert is_finished(folder)


@pytest.mark.faults
def test_a_recipe_file_that_changes_during_a_run_ends_the_run(run: Run) -> None:
    """Cached results are named by the recipe in memory, so the file has to hold the same recipe (I21)."""
    run.open({})
    assert from_dict(json.loads(run.recipe_file.read_bytes())) == run.recipe
    for way in ways(run.folder / "recipe.json", flips=8):
        with pytest.raises(CorruptObject, match=r"recipe\.json was changed while the run was using it; start the run"):
            assert run.recipe_file == way
    assert run.recipe_file.name == "recipe.json"


@pytest.mark.faults
def test_every_broken_file_of_a_result_is_found(run: Run) -> None:
    work = Work()
    folder = run.cached("train", files=FILES, work=work)
    for name in ("network.pt", "scores", "done.json"):
        whole = (folder / name).read_bytes()
        for way in ways(folder / name, flips=8):
            calls = work.calls
            run.cached("train", files=FILES, work=work)
            assert (work.calls, (folder / name).read_bytes()) == (calls + 1, whole), way


def test_a_changed_gate_is_another_retraining(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Workspace.init(tmp_path / "shop")
    monkeypatch.setattr(inputs_module, "version_to_train_on", lambda versions, recipe: "d" * 32)
    monkeypatch.setattr(inputs_module, "deciding_hash", deciding_hash.__wrapped__)
    before = inputs(shop, Recipe(name="r"))
    folder = shop.runs / "20260101-030000-abcdef"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"model_version": 1, "verdict": {"passed": True, "reasons": []}}))
    (folder / "inputs.json").write_text(json.dumps(before))
    assert ended_before(shop, inputs(shop, Recipe(name="r")))
    (source / "flows" / "gate" / "gates.py").write_text("THIRDS = ()")
    assert ended_before(shop, inputs(shop, Recipe(name="r"))) == ""
