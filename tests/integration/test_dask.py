"""Steps on a real Dask cluster whose workers are processes: the same results, and no process is left behind."""

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
from distributed import Client, LocalCluster
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
    """Trains a member and scores the folds in parallel, as a retraining does."""
    folds = [score_fold.submit(run, data, fold) for fold in range(run.recipe.clean.folds)]
    return together([train.submit(run, data, 0), *folds])


def learn(shop: Workspace) -> dict[str, str]:
    """Hashes of the files that the steps leave, by path."""
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
    (folder / "apple" / "broken.png").write_bytes(b"not a photo")
    shutil.copy(folder / "apple" / "photo 0.png", folder / "bean" / "again.png")
    return folder


@pytest.fixture(scope="module")
def filled(delivery: Path, prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Workspace into which the delivery was ingested by threads."""
    shop = Workspace.init(tmp_path_factory.mktemp("filled") / "shop")
    ingest(shop, delivery)
    return shop


@pytest.fixture
def shop(filled: Workspace, tmp_path: Path) -> Workspace:
    return Workspace(Path(shutil.copytree(filled.root, tmp_path / "shop", symlinks=True)))


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of a scheduler with two workers that know no workspace."""
    with LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster:
        yield cluster.scheduler_address


@pytest.mark.slow
def test_training_gives_the_same_files_on_dask_as_in_threads(shop: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = learn(shop)
    shutil.rmtree(shop.runs)
    monkeypatch.setenv("CLEANSHELF_DASK", "local")
    assert learn(shop) == expected
    assert len(expected) == 6


def test_a_delivery_gives_the_same_version_on_dask_as_in_threads(
    filled: Workspace, delivery: Path, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLEANSHELF_DASK", cluster)
    monkeypatch.setattr(flows.ingest, "BATCH", 8)
    monkeypatch.setattr(flows.ingest, "AT_ONCE", 3)
    ingested = ingest(Workspace.init(tmp_path / "shop"), delivery)
    assert (ingested.report.added, sum(ingested.report.quarantined.values()), ingested.report.conflicts) == (90, 1, 1)
    assert ingested.data_version == DataVersions(filled).selected()


def trainings(shop: Workspace) -> list[int]:
    """Pids of the processes that train in the workspace."""
    return [
        pid
        for pid, argv in commands()
        if "models.training.train" in argv and any(str(shop.root) in word for word in argv)
    ]


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_trainings_on_other_machines_end_with_their_flow(shop: Workspace, cluster: str, number: signal.Signals) -> None:
    """The workers stay, as they would on other machines; the processes that they started end."""
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
    settings = {"CLEANSHELF_DASK": cluster, "PREFECT_API_URL": PREFECT_API_URL.value(), "PYTHONPATH": str(ROOT)}
    with (shop.state / "log").open("wb") as log:
        flow = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log, start_new_session=True)
    try:
        assert until(lambda: any(shop.runs.glob("stages/train-*/checkpoint.pt")), timeout_s=120), (
            shop.state / "log"
        ).read_text()
        assert trainings(shop)
        flow.send_signal(number)
        flow.wait(60)
        assert until(lambda: not trainings(shop), timeout_s=20), "a training goes on without its flow"
    finally:
        flow.kill()
        flow.wait()


@pytest.fixture
def two_machines(prefect_server: None, tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Address of a scheduler, and its two workers, started as on other machines: nothing starts a lost one again."""
    with LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0") as scheduler:
        address = scheduler.scheduler_address
        command = [sys.executable, "-m", "dask", "worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        variables = os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value(), "PYTHONPATH": str(ROOT)}
        workers = [
            subprocess.Popen([*command, "--local-directory", str(tmp_path / f"worker-{number}")], env=variables)
            for number in range(2)
        ]
        try:
            with Client(address, set_as_default=False) as client:
                client.wait_for_workers(2, timeout=60)
            yield address, workers
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_worker_that_dies_costs_its_fold_only_and_the_other_resumes_it(
    shop: Workspace, two_machines: tuple[str, list[subprocess.Popen[bytes]]]
) -> None:
    address, workers = two_machines
    command = [sys.executable, "-m", "flows.cli", "clean", "smoke", "-w", str(shop.root), "--set", "clean.epochs=200"]
    settings = {"PREFECT_API_URL": PREFECT_API_URL.value(), "PYTHONPATH": str(ROOT)}
    undisturbed = Path(shutil.copytree(shop.root, shop.root.parent / "undisturbed", symlinks=True))
    log, started = shop.root / "log", dict[str, set[int]]()
    with log.open("wb") as out:
        variables = os.environ | settings | {"CLEANSHELF_DASK": address}
        flow = subprocess.Popen(command, env=variables, stdout=out, stderr=out, start_new_session=True)

    def have_checkpoints() -> bool:
        note_trainings(shop, started)
        return len(list(shop.runs.glob("stages/fold-*/checkpoint.pt"))) == 2

    def has_ended() -> bool:
        note_trainings(shop, started)
        return flow.poll() is not None

    try:
        assert until(have_checkpoints, timeout_s=120), log.read_text()
        workers[0].kill()
        assert until(has_ended, timeout_s=300), log.read_text()
    finally:
        flow.kill()
        flow.wait()
    assert flow.returncode == 0, log.read_text()
    assert sorted(map(len, started.values())) == [1, 2], "one fold was trained by one process, the other by two"
    assert "resuming after epoch" in log.read_text()
    command[command.index(str(shop.root))] = str(undisturbed)
    subprocess.run(command, env=os.environ | settings, capture_output=True, check=True)
    assert DataVersions(shop).selected() == DataVersions(Workspace(undisturbed)).selected()


@pytest.mark.slow
@pytest.mark.faults
def test_a_worker_that_dies_while_it_opens_photos_costs_no_photo(
    prefect_server: None, two_machines: tuple[str, list[subprocess.Popen[bytes]]], tmp_path: Path
) -> None:
    address, workers = two_machines
    delivery = deliver(tmp_path / "shelf", {f"product {number}": 100 for number in range(60)}, side=96)
    shop, undisturbed = (Workspace.init(tmp_path / name) for name in ("shop", "undisturbed"))
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "ingest",
        str(delivery),
        "-w",
        str(shop.root),
        "--near-duplicates",
        "off",
    ]
    variables = os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value(), "PYTHONPATH": str(ROOT)}
    with (shop.root / "log").open("wb") as log, Client(address, set_as_default=False) as client:
        flow = subprocess.Popen(command, env=variables | {"CLEANSHELF_DASK": address}, stdout=log, stderr=log)
        try:
            assert until(lambda: all(client.processing().values()), timeout_s=120), "not every worker got a batch"
            workers[0].kill()
            assert flow.wait(240) == 0, (shop.root / "log").read_text()
            assert len(client.processing()) == 1
        finally:
            flow.kill()
            flow.wait()
    ingest(undisturbed, delivery, near_duplicates=None)
    assert DataVersions(shop).selected() == DataVersions(undisturbed).selected()


def note_trainings(shop: Workspace, started: dict[str, set[int]]) -> None:
    """Adds the pids of the trainings of folds that run now, by fold."""
    for pid, argv in commands():
        if "models.training.train" in argv and "--fold" in argv and any(str(shop.root) in word for word in argv):
            started.setdefault(argv[argv.index("--fold") + 1], set()).add(pid)


def refusal(shop: Workspace, monkeypatch: pytest.MonkeyPatch, cluster: str) -> str:
    """Message that refuses the cluster, after a check that it comes in less than a minute."""
    monkeypatch.setenv("CLEANSHELF_DASK", cluster)
    began = time.monotonic()
    with pytest.raises(InputError) as caught, parallel_tasks(shop, num_parallel=1):
        pass
    assert time.monotonic() - began < 60, "it does not wait for ever"
    return str(caught.value)


def test_a_cluster_that_cannot_be_used_is_refusal(
    shop: Workspace, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        assert f"no Dask scheduler answers at '{address}'" in refusal(shop, monkeypatch, address)
    assert "no Dask scheduler answers at 'shelf://'" in refusal(shop, monkeypatch, "shelf://")
    unmounted = Workspace(tmp_path / "unmounted")
    assert f"it does not see {unmounted.root}/.dvc/config; mount it there" in refusal(unmounted, monkeypatch, cluster)
    with LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0") as empty:
        assert "has no workers" in refusal(shop, monkeypatch, empty.scheduler_address)


def test_a_missing_package_is_named_with_the_way_to_install_it(
    shop: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "flows.run.cluster", raising=False)
    monkeypatch.setitem(sys.modules, "prefect_dask", None)
    message = refusal(shop, monkeypatch, "local")
    assert "prefect_dask is not installed; run `.venv/bin/pip install" in message
