"""A scheduler with a real Prefect server: refusals, triggers and kills; nothing is trained."""

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
from flows.scheduler.record import history, status
from flows.scheduler.schedule import STOPPED
from flows.workspace import Workspace
from serving.server.process import until
from tests.command_line import ROOT, cleanshelf, processes, refusal
from tests.deliveries import deliver
from tests.scheduling import scheduler, scheduler_log, tracebacks, wait_for_outcomes
from tests.surroundings import rough

pytestmark = [
    pytest.mark.dvc,
    pytest.mark.prefect,
]
PHOTOS = {"tea": 5, "milk": 5}
STRANGER = "0" * 8 + "-0000-4000-8000-" + "0" * 12  # id of a flow run


def ingest(shop: Workspace, source: Path) -> str:
    """Commits a delivery as a data version, without a flow, and returns its id."""
    versions = DataVersions(shop)
    base = versions.materialise("selected") if versions.selected() else None
    folder = versions.new_folder()
    build_version(source, base=base, out=folder, parent=base.name if base else None)
    return versions.commit(folder, step="ingest", message=source.name)


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("delivered")
    shop = Workspace.init(folder / "shop")
    ingest(shop, deliver(folder / "delivery", PHOTOS))
    return shop.root


@pytest.fixture
def shop(delivered: Path, tmp_path: Path) -> Workspace:
    return Workspace(Path(shutil.copytree(delivered, tmp_path / "shop", symlinks=True)))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Recipe file of the user."""
    return Path(shutil.copy(ROOT / "models" / "recipes" / "smoke.toml", tmp_path / "ours.toml"))


def flow_runs(shop: Workspace) -> list[tuple[str, str, str]]:
    """Deployment, state and message of each run that began, oldest first, read from the database without a server."""
    query = """select d.name, r.state_type, s.message from flow_run r join deployment d on d.id = r.deployment_id
               join flow_run_state s on s.id = r.state_id where r.start_time is not null order by r.start_time"""
    with sqlite3.connect(shop.state / "prefect" / "prefect.db") as database:
        return database.execute(query).fetchall()


def add_run_of_a_stranger(shop: Workspace) -> None:
    """Copies the first run in the database as that of a flow on another workspace, under the id of `run_of_the_stranger`."""
    with sqlite3.connect(shop.state / "prefect" / "prefect.db") as database:
        database.execute("create temp table strange as select * from flow_run limit 1")
        database.execute("update strange set id = ?, start_time = null, idempotency_key = null, parameters = ?",
                         (STRANGER, '{"workspace": "/elsewhere"}'))  # fmt: skip
        database.execute("insert into flow_run select * from strange")


def run_of_the_stranger(shop: Workspace) -> str:
    """State of that run."""
    with sqlite3.connect(shop.state / "prefect" / "prefect.db") as database:
        [(state,)] = database.execute("select state_type from flow_run where id = ?", (STRANGER,))
        return str(state)


def test_an_invalid_schedule_is_refused_before_anything_starts(shop: Workspace) -> None:
    message = refusal(cleanshelf("schedule", "smoke", "-w", shop.root, "--cron", "Monday"))
    assert (
        message
        == "--cron 'Monday' is not a cron expression; write minute, hour, day, month, weekday, such as '0 3 * * 1'"
    )
    assert not (shop.state / "prefect-server.log").exists()


def test_a_port_in_use_is_refused(shop: Workspace) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        message = refusal(cleanshelf("schedule", "smoke", "-w", shop.root, "--port", port))
    assert message == f"port {port} is not available (Address already in use); choose another with --port"


@pytest.mark.faults
@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (Path.mkdir, "unable to open database file"),
        (lambda path: path.write_bytes(b"?" * 8192), "file is not a database"),
    ],
    ids=["a folder", "broken bytes"],
)
def test_a_server_that_cannot_start_is_an_error_and_nothing_changes(
    shop: Workspace, break_it: Callable[[Path], object], reason: str
) -> None:
    database = shop.state / "prefect" / "prefect.db"
    database.parent.mkdir(parents=True)
    break_it(database)
    before = DataVersions(shop).selected()
    done = cleanshelf("schedule", "smoke", "-w", shop.root, "--port", 0)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("cleanshelf: Prefect's server ended during its start: ")
    assert f"{reason}; see " in done.stderr
    assert f"{database} contains only the history of runs: move it away" in done.stderr
    assert DataVersions(shop).selected() == before
    assert processes(shop.state) == {}


def test_one_scheduler_per_workspace_reacts_to_new_data_and_ends_on_a_signal(
    shop: Workspace, recipe: Path, tmp_path: Path
) -> None:
    with scheduler(shop.root, recipe, "--on-new-data") as process:
        assert until(lambda: status(shop)["running"], timeout_s=120), scheduler_log(shop.root)
        second = refusal(cleanshelf("schedule", "-w", shop.root))
        assert second.startswith(f"{shop.root} is busy: `schedule` (process {process.pid}) holds it")
        recipe.write_text("name = 1")  # each run reads the recipe, and fails

        assert wait_for_outcomes(shop.root, "failed"), "it reacts to data from before its start\n" + scheduler_log(
            shop.root
        )
        ingest(shop, deliver(tmp_path / "more", {"tea": 2}, first_seed=100))
        assert wait_for_outcomes(shop.root, "failed", "failed"), scheduler_log(shop.root)
        assert until(lambda: not status(shop)["next"], timeout_s=30), "the status is written a moment later"
        now = status(shop)
        assert (now["next"], now["on_new_data"], now["recipe"]) == ("", True, str(recipe))
        assert "name" in now["runs"][0]["why"]

        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, scheduler_log(shop.root)
    assert processes(shop.state) == {}
    assert not status(shop)["running"]
    assert tracebacks(shop.root) == []


@pytest.mark.faults
def test_a_killed_scheduler_leaves_no_run_that_stays_running_and_an_interrupted_one_cancels_its_run(
    shop: Workspace, recipe: Path, tmp_path: Path
) -> None:
    whole = recipe.read_text()
    with shop.lock("a long ingestion"), scheduler(shop.root, recipe, "--on-new-data") as process:
        assert wait_for_outcomes(shop.root, "running"), scheduler_log(shop.root)
        os.kill(process.pid, signal.SIGKILL)
        assert until(lambda: not processes(shop.state) and not status(shop)["running"], timeout_s=20), (
            "processes of the scheduler still run"
        )
        assert wait_for_outcomes(shop.root, "crashed")
    assert [(name, state) for name, state, _ in flow_runs(shop)] == [("retrain", "RUNNING")]
    strangers = Path(shutil.copy(shop.state / "prefect" / "prefect.db", tmp_path / "strangers.db"))
    before = strangers.read_bytes()
    add_run_of_a_stranger(shop)

    database = f"sqlite+aiosqlite:///{strangers}"
    with (
        rough(tmp_path / "here") as (here, others),
        scheduler(shop.root, recipe, "--on-new-data", folder=here, **others,
                  PREFECT_SERVER_DATABASE_CONNECTION_URL=database) as process,
    ):  # fmt: skip
        assert until(lambda: status(shop)["running"], timeout_s=120), scheduler_log(shop.root)
        recipe.write_text("name = 1")
        assert wait_for_outcomes(shop.root, "failed", "crashed"), scheduler_log(shop.root)
        recipe.write_text(whole)
        with shop.lock("a long ingestion"):
            ingest(shop, deliver(tmp_path / "more", {"tea": 2}, first_seed=100))
            assert wait_for_outcomes(shop.root, "running", "failed", "crashed"), scheduler_log(shop.root)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0, scheduler_log(shop.root)
    assert [run.outcome for run in history(shop)] == ["cancelled", "failed", "crashed"]
    assert tracebacks(shop.root) == []
    assert flow_runs(shop) == [
        ("retrain", "CRASHED", "its process ended unexpectedly"),
        ("retrain", "FAILED", history(shop)[1].why),
        ("retrain", "CANCELLED", STOPPED),
    ], "all runs are of one deployment, in the same database"
    assert strangers.read_bytes() == before
    assert run_of_the_stranger(shop) == "RUNNING"
