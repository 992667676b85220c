"""Stages on a real Dask cluster, whose workers are processes: the same results, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import LocalCluster
from prefect import flow
from prefect.settings import PREFECT_API_URL

import flows.ingest
from durable import sha256
from flows.data.versions import DataVersions
from flows.errors import InputError
from flows.ingest import ingest
from flows.run.run import Run
from flows.run.step import parallel_tasks, together
from flows.steps.learn import score_fold, train
from flows.steps.start import data_to_train_on
from flows.workspace import Workspace
from models.recipe.config import load_recipe
from serving.server.process import commands, until
from tests.command_line import ROOT
from tests.deliveries import deliver

pytestmark = [
    pytest.mark.dvc,
    pytest.mark.prefect,
]
KEPT = ("network.pt", "scores.parquet")


@flow(validate_parameters=False)
def learning(run: Run, data: Path) -> list[Path]:
    """Trains several members in parallel, as a retraining does."""
    folds = [score_fold.submit(run, data, fold) for fold in range(run.recipe.clean.folds)]
    return together([train.submit(run, data, 0), *folds])


def learn(shop: Workspace) -> dict[str, str]:
    """Files that the steps leave, each with its hash."""
    recipe = load_recipe("smoke", overrides=("train.epochs=1", "clean.epochs=1"))
    run, data = Run(shop, recipe, id="learning"), data_to_train_on(shop, recipe)
    run.open({})
    with parallel_tasks(shop, num_parallel=2) as runner:
        folders = learning.with_options(task_runner=runner)(run, data)
    return {f"{folder.name}/{name}": sha256(folder / name) for folder in folders for name in KEPT}


@pytest.fixture(scope="module")
def delivery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A delivery with one photo that cannot be decoded and one that occurs twice."""
    folder = deliver(tmp_path_factory.mktemp("delivery") / "shelf", {"apple": 30, "bean": 30, "corn": 30}, side=40)
    (folder / "apple" / "broken.png").write_bytes(b"no photo")
    shutil.copy(folder / "apple" / "photo 0.png", folder / "bean" / "again.png")
    return folder


@pytest.fixture(scope="module")
def filled(delivery: Path, prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with that delivery, by threads."""
    shop = Workspace.init(tmp_path_factory.mktemp("filled") / "shop")
    ingest(shop, delivery)
    return shop


@pytest.fixture
def shop(filled: Workspace, tmp_path: Path) -> Workspace:
    return Workspace(Path(shutil.copytree(filled.root, tmp_path / "shop", symlinks=True)))


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a scheduler with two workers, which know nothing of any workspace."""
    with LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster:
        yield cluster.scheduler_address


def test_a_member_and_folds_come_to_the_same_on_dask_as_in_threads(
    shop: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = learn(shop)
    shutil.rmtree(shop.runs)
    monkeypatch.setenv("CLEANSHELF_DASK", "local")
    assert learn(shop) == expected
    assert len(expected) == 6


def test_a_delivery_becomes_the_same_version_on_dask_as_in_threads(
    filled: Workspace, delivery: Path, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLEANSHELF_DASK", cluster)
    monkeypatch.setattr(flows.ingest, "BATCH", 8)
    monkeypatch.setattr(flows.ingest, "AT_ONCE", 3)
    ingested = ingest(Workspace.init(tmp_path / "shop"), delivery)
    assert (ingested.report.added, sum(ingested.report.quarantined.values()), ingested.report.conflicts) == (90, 1, 1)
    assert ingested.data_version == DataVersions(filled).selected()


def trainings(shop: Workspace) -> list[int]:
    """Processes that train in the workspace."""
    return [
        pid
        for pid, argv in commands()
        if "models.training.train" in argv and any(str(shop.root) in word for word in argv)
    ]


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_trainings_on_other_machines_end_with_their_flow(shop: Workspace, cluster: str, number: signal.Signals) -> None:
    """The workers stay, as they would on other machines; what they started goes."""
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "retrain",
        "smoke",
        "-w",
        str(shop.root),
        "--set",
        "train.epochs=5000",
    ]
    ours = {"CLEANSHELF_DASK": cluster, "PREFECT_API_URL": PREFECT_API_URL.value(), "PYTHONPATH": str(ROOT)}
    with (shop.state / "log").open("wb") as log:
        flow = subprocess.Popen(command, env=os.environ | ours, stdout=log, stderr=log, start_new_session=True)
    told = (shop.state / "log").read_text
    try:
        assert until(lambda: any(shop.runs.glob("stages/train-*/checkpoint.pt")), timeout_s=120), told()
        assert trainings(shop)
        flow.send_signal(number)
        flow.wait(60)
        assert until(lambda: not trainings(shop), timeout_s=20), "a training goes on without its flow"
    finally:
        flow.kill()
        flow.wait()


def refused(shop: Workspace, monkeypatch: pytest.MonkeyPatch, where: str) -> str:
    """The message, within seconds."""
    monkeypatch.setenv("CLEANSHELF_DASK", where)
    began = time.monotonic()
    with pytest.raises(InputError) as caught, parallel_tasks(shop, num_parallel=1):
        pass
    assert time.monotonic() - began < 60, "no waiting for ever"
    return str(caught.value)


def test_a_cluster_that_cannot_be_used_is_refused(
    shop: Workspace, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        assert f"no Dask scheduler answers at '{nobody}'" in refused(shop, monkeypatch, nobody)
    assert "no Dask scheduler answers at 'shelf://'" in refused(shop, monkeypatch, "shelf://")
    gone = Workspace(tmp_path / "unmounted")
    assert f"it does not see {gone.root}/.dvc/config; mount it there" in refused(gone, monkeypatch, cluster)
    with LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0") as empty:
        assert "has no workers" in refused(shop, monkeypatch, empty.scheduler_address)


def test_without_the_package_it_says_what_to_install(shop: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "flows.run.cluster", raising=False)
    monkeypatch.setitem(sys.modules, "prefect_dask", None)
    told = refused(shop, monkeypatch, "local")
    assert "prefect_dask is not installed; run `.venv/bin/pip install" in told
