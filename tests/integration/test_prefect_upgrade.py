"""A schedule goes on where it was after an upgrade of Prefect, and two versions of Prefect do not mix.

CLEANSHELF_OTHER_PYTHON names the interpreter of an environment with an older minor version of Prefect: Prefect upgrades its
database and does not go back, so a newer one does not fit. The commit before the last move of Prefect has such a version:

    git worktree add /tmp/older "$(git log -1 --format=%H -G '^prefect==' -- constraints.txt)^"
    python -m venv /tmp/older/.venv
    /tmp/older/.venv/bin/pip install -c /tmp/older/constraints.txt '/tmp/older[flows]'
    CLEANSHELF_OTHER_PYTHON=/tmp/older/.venv/bin/python python -m pytest tests/integration/test_prefect_upgrade.py
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest

from flows.orchestrator.events import scheduler_server
from flows.scheduler.record import history
from flows.workspace import Workspace
from serving.server.process import until
from tests.command_line import ROOT, cleanshelf
from tests.deliveries import deliver
from tests.integration.test_schedule import ingest, past_folders
from tests.scheduling import PATIENCE_S, scheduler, scheduler_log

OTHER = os.environ.get("CLEANSHELF_OTHER_PYTHON", "")
EVERY_S = 20

pytestmark = [
    pytest.mark.dvc,
    pytest.mark.prefect,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not OTHER, reason="CLEANSHELF_OTHER_PYTHON names no environment with an older Prefect"),
]


@pytest.fixture
def shop(tmp_path: Path) -> Workspace:
    shop = Workspace.init(tmp_path / "shop")
    ingest(shop, deliver(tmp_path / "delivery", {"tea": 5, "milk": 5}))
    return shop


def began(shop: Workspace) -> list[datetime]:
    """Times at which the runs that began were due, in order."""
    query = "select expected_start_time from flow_run where start_time is not null order by expected_start_time"
    with sqlite3.connect(shop.state / "prefect" / "prefect.db") as database:
        return [datetime.fromisoformat(at) for (at,) in database.execute(query)]


def num_ended(shop: Workspace) -> int:
    """Number of runs that ended."""
    return sum(run.outcome == "unchanged" for run in history(shop))


def test_an_upgrade_loses_no_run_and_repeats_none(shop: Workspace, tmp_path: Path) -> None:
    recipe = Path(shutil.copy(ROOT / "models" / "recipes" / "smoke.toml", tmp_path / "ours.toml"))
    past_folders(shop, recipe, 1)  # so that runs end within seconds
    every = ("--every", f"{EVERY_S}s")
    with scheduler(shop.root, recipe, *every, python=OTHER) as process:
        assert until(lambda: num_ended(shop) >= 2, timeout_s=3 * PATIENCE_S), scheduler_log(shop.root)
        refuses_to_mix(shop, recipe)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, scheduler_log(shop.root)
    before = num_ended(shop)
    time.sleep(2.5 * EVERY_S)
    with scheduler(shop.root, recipe, *every) as process:
        assert until(lambda: num_ended(shop) >= before + 5, timeout_s=3 * PATIENCE_S), scheduler_log(shop.root)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, scheduler_log(shop.root)
    runs = began(shop)
    print(f"{len(runs)} runs, due at", *(f"{at:%H:%M:%S}" for at in runs))
    assert len(runs) >= before + 5
    gaps = [(after - at).total_seconds() for at, after in pairwise(runs)]
    assert all(abs(gap - EVERY_S) < 1 for gap in gaps), f"a run was left out, came twice or was moved: {gaps}"


def refuses_to_mix(shop: Workspace, recipe: Path) -> None:
    """A command with our Prefect does not report to the scheduler of the other."""
    server = scheduler_server(shop)
    assert server is not None
    for variables, way_out in (
        ({}, "stop `cleanshelf schedule` and start it again"),
        ({"PREFECT_API_URL": server.url}, "install the same version on both sides"),
    ):
        done = cleanshelf("retrain", recipe, "-w", shop.root, env=variables)
        assert done.returncode == 3, done
        lines = done.stderr.splitlines()
        assert [line for line in lines if line.startswith("cleanshelf: ")] == lines[-1:], "one line refuses"
        assert f"{server.url} runs Prefect " in lines[-1]
        assert way_out in lines[-1]
        assert "Traceback" not in done.stderr
