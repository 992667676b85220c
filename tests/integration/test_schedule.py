"""A scheduler with a real Prefect server: refusals, triggers and kills; nothing is trained."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flows.data.versions import DataVersions
from flows.delivery.build import build_version
from flows.pages.runs import runs
from flows.run.inputs import inputs
from flows.scheduler.record import history, status
from flows.scheduler.schedule import STOPPED
from flows.workspace import Workspace
from models.recipe.config import load_recipe
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
PAST_RUNS = 10_000
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_restart_moves_no_run(shop: Workspace, recipe: Path) -> None:
    first, second = (next_of_a_new_scheduler(shop, recipe) for _ in range(2))
    assert first == second, "a period counts on, so that one longer than the days between restarts ends too"


def next_of_a_new_scheduler(shop: Workspace, recipe: Path) -> str:
    """Time of the next run, as a scheduler says that is started for this."""
    file, began = shop.state / "schedule.json", time.time()
    with scheduler(shop.root, recipe, "--every", "6h") as process:
        written = until(lambda: file.exists() and file.stat().st_mtime > began and status(shop)["next"], timeout_s=120)
        assert written, scheduler_log(shop.root)
        found = str(status(shop)["next"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, scheduler_log(shop.root)
    return found


def as_many_past_runs(shop: Workspace, count: int) -> None:
    """Copies the run that ended last, with its states, into Prefect's database, and its lines into our record."""
    with sqlite3.connect(shop.state / "prefect" / "prefect.db") as database:
        [(original,)] = database.execute("select id from flow_run where end_time is not null")
        for table, key in (("flow_run", "id"), ("flow_run_state", "flow_run_id")):
            columns = [name for _, name, *_ in database.execute(f"pragma table_info({table})")]
            rows = database.execute(f"select * from {table} where {key} = ?", (original,)).fetchall()
            copies = (
                [past_value(column, value, number) for column, value in zip(columns, row, strict=True)]
                for number in range(count)
                for row in rows
            )
            database.executemany(f"insert into {table} values ({','.join('?' * len(columns))})", copies)
    [ended] = history(shop)
    with (shop.state / "scheduled.jsonl").open("a") as file:
        for number in range(count):
            run = asdict(ended) | {"flow_run": past_id(ended.flow_run, number)}
            file.writelines(f"{json.dumps(run | {'outcome': outcome})}\n" for outcome in ("running", ended.outcome))


def past_value(column: str, value: object, number: int) -> object:
    """Value of a column in the copy of that number: ids are new, and nothing refers to the original."""
    if column in ("id", "state_id", "flow_run_id"):
        return past_id(str(value), number)
    return None if column == "idempotency_key" else value


def past_id(original: str, number: int) -> str:
    """Id of a copy."""
    return f"{number:08x}{original[8:]}"


def past_folders(shop: Workspace, recipe: Path, count: int) -> str:
    """Folders of as many ended runs; the oldest published a model from the present inputs. Returns its name."""
    now = inputs(shop, load_recipe(str(recipe)))
    for number in range(count):
        folder = shop.runs / f"20260101-000000-{number:05x}"
        folder.mkdir(parents=True)
        before = now if number == 0 else now | {"config": str(number)}
        report = {"model_version": 1, "verdict": {"passed": True, "reasons": []}}
        (folder / "inputs.json").write_text(json.dumps(before))
        (folder / "run.json").write_text(json.dumps(report))
    return f"20260101-000000-{0:05x}"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_after_many_past_runs_a_schedule_fires_in_time(shop: Workspace, recipe: Path) -> None:
    name = past_folders(shop, recipe, PAST_RUNS)
    with scheduler(shop.root, recipe, "--on-new-data") as process:
        assert wait_for_outcomes(shop.root, "unchanged"), scheduler_log(shop.root)
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    as_many_past_runs(shop, PAST_RUNS)
    began = datetime.now(UTC)
    with scheduler(shop.root, recipe, "--every", "20s"):
        fired = until(
            lambda: datetime.fromisoformat(history(shop)[0].at) >= began and history(shop)[0].outcome != "running",
            timeout_s=240,
        )
        assert fired, scheduler_log(shop.root)
    query = (
        "select (julianday(start_time) - julianday(expected_start_time)) * 86400 from flow_run where start_time >= ?"
    )
    with sqlite3.connect(shop.state / "prefect" / "prefect.db") as database:
        [(late_s,), *_] = database.execute(query, (f"{began:%Y-%m-%d %H:%M:%S}",)).fetchall()
    print(f"the first run after {PAST_RUNS:,} past ones began {late_s:.1f} s after it was due")
    assert late_s < 60
    assert history(shop)[0].outcome == "unchanged"
    assert name in history(shop)[0].why
    began_s = time.perf_counter()
    assert (len(runs(shop, limit=20).runs), runs(shop, limit=20).more) == (20, PAST_RUNS - 20)
    assert len(status(shop)["runs"]) > PAST_RUNS
    assert time.perf_counter() - began_s < 10, "seconds for lists that take a fraction of one"
