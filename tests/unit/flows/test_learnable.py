"""The part of a data version that trainings depend on."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from flows.delivery.build import build_version
from flows.run.run import Run
from flows.steps.learn import is_trained
from flows.steps.learnable import ROWS, learnable
from flows.workspace import Workspace
from flows.workspace.results import DataFolder
from models.data.confusion import NAME
from models.data.manifest import read_manifest, write_labels
from models.recipe.config import load_recipe
from tests.deliveries import deliver


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("learnable")
    build_version(deliver(root / "source", {"a": 10, "b": 10}), base=None, out=root / "base")
    return root / "base"


def test_photos_without_a_label_leave_trainings_valid(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = deliver(tmp_path / "more", {"any": 5}, first_seed=500)
    build_version(more, base=base, out=tmp_path / "next", unlabelled=True)
    assert len(read_manifest(tmp_path / "next")) == len(read_manifest(base)) + 5
    assert learnable(tmp_path / "next") == learnable(base)
    monkeypatch.setattr("flows.steps.learnable.ROWS", 7)
    learnable.cache_clear()
    assert learnable(tmp_path / "next") == learnable(base)
    assert ROWS > 7


def test_photos_with_a_label_do_not(base: Path, tmp_path: Path) -> None:
    build_version(deliver(tmp_path / "more", {"a": 1}, first_seed=900), base=base, out=tmp_path / "next")
    assert learnable(tmp_path / "next") != learnable(base)


@pytest.mark.parametrize("column", ["label", "kept", "decision", "score"])
def test_every_decision_counts(base: Path, tmp_path: Path, column: str) -> None:
    shutil.copytree(base, tmp_path / "next")
    manifest = read_manifest(base)
    row = int(np.flatnonzero(manifest.split == "train")[0])
    values = {"label": "b" if manifest.label[row] == "a" else "a", "kept": False, "decision": "doubted", "score": 0.5}
    getattr(manifest, column)[row] = values[column]
    write_labels(tmp_path / "next", manifest)
    assert learnable(tmp_path / "next") != learnable(base)


def test_estimated_confusions_count(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "next")
    (tmp_path / "next" / NAME).write_bytes(b"pairs of classes")
    assert learnable(tmp_path / "next") != learnable(base)


def test_a_fold_that_is_looked_at_through_several_encoders_can_be_named(base: Path, tmp_path: Path) -> None:
    recipe = load_recipe("frozen")
    assert recipe.other_encoders == [1]
    run = Run(Workspace(tmp_path), recipe, "run")
    assert not is_trained(run, DataFolder(base), recipe.clean.member, fold=0)
