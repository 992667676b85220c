"""Stages on a real Dask cluster, whose workers are processes: the same results, and nothing left behind."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from prefect import flow

from flows.data_version import DataVersions
from flows.intake import ingest
from flows.learn import score_fold, train
from flows.retrain import data_to_train_on
from flows.run import Run
from flows.stage import side_by_side, together
from flows.workspace import Workspace
from models.config import load_recipe
from serving.durable import sha256
from tests.deliveries import deliver

pytestmark = [
    pytest.mark.dvc,
    pytest.mark.prefect,
]


@flow(validate_parameters=False)
def learning(run: Run, data: Path) -> list[Path]:
    """What a retraining does side by side."""
    members, folds = range(len(run.recipe.members)), range(run.recipe.clean.folds)
    return together([
        *(train.submit(run, data, member) for member in members),
        *(score_fold.submit(run, data, fold) for fold in folds),
    ])  # fmt: skip


def learn(shop: Workspace) -> dict[str, str]:
    """What the stages leave, by name, with its hash."""
    recipe = load_recipe("smoke", overrides=("train.epochs=1", "clean.epochs=1"))
    run = Run(shop, recipe, id="learning")
    data = data_to_train_on(shop, recipe)
    run.open({})
    with side_by_side(shop, places=2) as runner:
        folders = learning.with_options(task_runner=runner)(run, data)
    return {
        f"{folder.name}/{name}": sha256(folder / name)
        for folder in folders
        for name in ("network.pt", "scores.parquet")
        if (folder / name).exists()
    }


@pytest.fixture
def shop(tmp_path: Path) -> Workspace:
    shop = Workspace.init(tmp_path / "shop")
    versions = DataVersions(shop)
    folder = versions.stage()
    ingest(deliver(tmp_path / "delivery", {"apple": 9, "bean": 9, "corn": 9}, side=40), base=None, out=folder)
    versions.commit(folder, step="ingest", message="first")
    return shop


def test_members_and_folds_come_to_the_same_on_dask_as_in_threads(
    shop: Workspace, prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = learn(shop)
    shutil.rmtree(shop.runs)
    monkeypatch.setenv("CLEANSHELF_DASK", "local")
    t = time.time()
    found = learn(shop)
    print(found, time.time() - t)
    assert found == expected
