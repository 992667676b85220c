"""A scheduler on a real Prefect server: what it refuses, what it leaves behind, what wakes it. No training is needed for that."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.data.versions import DataVersions
from flows.delivery.build import build_version
from flows.scheduler.schedule import status
from flows.workspace import Workspace
from serving.server.process import until
from tests.command_line import ROOT, cleanshelf, processes, refusal
from tests.deliveries import deliver
from tests.scheduling import come_to, said, scheduler

pytestmark = [
    pytest.mark.dvc,
    pytest.mark.prefect,
]
PHOTOS = {"tea": 5, "milk": 5}


def take_in(shop: Workspace, source: Path) -> str:
    versions = DataVersions(shop)
    base = versions.materialise("selected") if versions.selected() else None
    folder = versions.new_folder()
    build_version(source, base=base, out=folder, parent=base.name if base else None)
    return versions.commit(folder, step="ingest", message=source.name)


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("delivered")
    shop = Workspace.init(folder / "shop")
    take_in(shop, deliver(folder / "delivery", PHOTOS))
    return shop.root


@pytest.fixture
def shop(delivered: Path, tmp_path: Path) -> Workspace:
    return Workspace(Path(shutil.copytree(delivered, tmp_path / "shop", symlinks=True)))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe of the user's own."""
    return Path(shutil.copy(ROOT / "models" / "recipes" / "smoke.toml", tmp_path / "ours.toml"))


def flow_runs(shop: Workspace) -> list[tuple[str, str, str]]:
    """Deployment, state and message of each run that began, oldest first, read from the database without a server."""
    asked = """select d.name, r.state_type, s.message from flow_run r join deployment d on d.id = r.deployment_id
               join flow_run_state s on s.id = r.state_id where r.start_time is not null order by r.start_time"""
    with sqlite3.connect(shop.state / "prefect" / "prefect.db") as database:
        return database.execute(asked).fetchall()


def test_a_plan_that_cannot_be_is_refused_before_anything_starts(shop: Workspace) -> None:
    told = refusal(cleanshelf("schedule", "smoke", "-w", shop.root, "--cron", "Monday"))
    assert (
        told == "--cron 'Monday' is not a cron expression; write minute, hour, day, month, weekday, such as '0 3 * * 1'"
    )
    assert not (shop.state / "prefect-server.log").exists()


def test_a_port_that_is_taken(shop: Workspace) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        told = refusal(cleanshelf("schedule", "smoke", "-w", shop.root, "--port", port))
    assert told == f"port {port} is not available (Address already in use); choose another with --port"


@pytest.mark.faults
@pytest.mark.parametrize(
    ("break_it", "why"),
    [
        (Path.mkdir, "unable to open database file"),
        (lambda path: path.write_bytes(b"?" * 8192), "file is not a database"),
    ],
    ids=["a folder", "broken bytes"],
)
def test_a_server_that_cannot_start_is_told_and_nothing_changes(
    shop: Workspace, tmp_path: Path, break_it: Callable[[Path], object], why: str
) -> None:
    database = shop.state / "prefect" / "prefect.db"
    database.parent.mkdir(parents=True)
    break_it(database)
    before = DataVersions(shop).selected()
    done = cleanshelf("ingest", deliver(tmp_path / "more", {"tea": 2, "milk": 1}, first_seed=100), "-w", shop.root)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("cleanshelf: Prefect's server ended during its start: ")
    assert f"{why}; see " in done.stderr
    assert f"{database} contains only the history of runs: move it away" in done.stderr
    assert DataVersions(shop).selected() == before
    assert processes(shop.state) == {}


def test_it_is_one_per_workspace_wakes_for_new_data_and_ends_when_asked(
    shop: Workspace, recipe: Path, tmp_path: Path
) -> None:
    with scheduler(shop.root, recipe, "--on-new-data") as process:
        assert until(lambda: status(shop)["running"], timeout_s=120), said(shop.root)
        second = refusal(cleanshelf("schedule", "-w", shop.root))
        assert second.startswith(f"{shop.root} is busy: `schedule` (process {process.pid}) holds it")
        recipe.write_text("name = 1")  # each run reads it again

        assert come_to(shop.root, "failed"), "it looks for data that came before it\n" + said(shop.root)
        take_in(shop, deliver(tmp_path / "more", {"tea": 2}, first_seed=100))
        assert come_to(shop.root, "failed", "failed"), said(shop.root)
        assert until(lambda: not status(shop)["next"], timeout_s=30), "it is written down a moment later"
        now = status(shop)
        assert (now["next"], now["on_new_data"], now["recipe"]) == ("", True, str(recipe))
        assert "name" in now["runs"][0]["why"]

        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, said(shop.root)
    assert processes(shop.state) == {}
    assert not status(shop)["running"]
    assert "Traceback" not in said(shop.root)


@pytest.mark.faults
def test_killed_it_takes_all_with_it_and_its_runs_do_not_stay_running(shop: Workspace, recipe: Path) -> None:
    with shop.lock("a long ingestion"), scheduler(shop.root, recipe, "--on-new-data") as process:
        assert come_to(shop.root, "running"), said(shop.root)
        os.kill(process.pid, signal.SIGKILL)
        assert until(lambda: not processes(shop.state) and not status(shop)["running"], timeout_s=20), "orphans"
        assert come_to(shop.root, "crashed")
    assert [(name, state) for name, state, _ in flow_runs(shop)] == [("retrain", "RUNNING")]

    with scheduler(shop.root, recipe, "--on-new-data") as process:
        assert until(lambda: status(shop)["running"], timeout_s=120), said(shop.root)
        recipe.write_text("name = 1")
        assert come_to(shop.root, "failed", "crashed"), said(shop.root)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, said(shop.root)
    (name, state, message), (again, *_) = flow_runs(shop)
    assert (name, state, message) == ("retrain", "CRASHED", "its process ended unexpectedly")
    assert again == name, "one deployment, in the same database"
