"""`cleanshelf retrain`, killed at any point: nothing stays running or locked, and the next run resumes (I20)."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from durable import sha256
from flows.data.versions import DataVersions
from flows.delivery.build import build_version
from flows.registry.repository import repository
from flows.registry.versions import ModelVersions
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger
from serving.server.environment import Environment
from serving.server.process import until
from tests.command_line import processes
from tests.integration.test_retrain import QUICK, stages, write_delivery
from tests.kills import Kills, run
from tests.versions import check_whole

pytestmark = [
    pytest.mark.dvc,
    pytest.mark.prefect,
    pytest.mark.triton,
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.timeout(7200),
]


def retraining(shop: Path) -> list[object]:
    return ["flows.cli", "retrain", "smoke", "-w", shop, *(word for key in QUICK for word in ("--set", key))]


def unfinished(workspace: Workspace) -> int:
    """Number of flow and task runs that Prefect believes to be running."""
    with sqlite3.connect(workspace.state / "prefect" / "prefect.db") as database:
        query = "select count(*) from {} where state_type in ('RUNNING', 'PENDING', 'CANCELLING')"
        return sum(database.execute(query.format(table)).fetchone()[0] for table in ("flow_run", "task_run"))


def is_free(workspace: Workspace) -> bool:
    """True if no process is left and no lock is held."""
    with workspace.idle("check"), workspace.lock("check", name="serving"):
        return until(lambda: not processes(workspace.state), timeout_s=20)


@pytest.fixture
def delivered(tmp_path: Path, triton_environment: Environment) -> Workspace:
    workspace = Workspace.init(tmp_path / "delivered")
    versions = DataVersions(workspace)
    folder = versions.new_folder()
    build_version(write_delivery(tmp_path / "delivery"), base=None, out=folder)
    versions.commit(folder, step="ingest", message="delivery")
    return workspace


def test_retraining(kills: Kills, delivered: Workspace, tmp_path: Path) -> None:
    """Kills come after the first cleaning; the networks before it are copied from an undisturbed run.

    The cleaned version is selected exactly when its model is the current one, or a kill came between the two.
    """
    whole = Workspace(Path(shutil.copytree(delivered.root, tmp_path / "whole", symlinks=True)))
    run(*retraining(whole.root), log=tmp_path / "whole.log")
    cleaned, before = (entry.id for entry in DataVersions(whole).log())
    first = (whole.versions / cleaned / "READY").stat().st_mtime_ns
    graph = sha256(repository(whole).path(1) / "model.onnx")

    def prepare(folder: Path) -> Sequence[object]:
        shop = Workspace(Path(shutil.copytree(delivered.root, folder / "shop", symlinks=True)))
        for name, finished in stages(whole).items():
            if finished < first:
                shutil.copytree(whole.runs / "stages" / name, shop.runs / "stages" / name)
        return retraining(shop.root)

    def check(folder: Path) -> None:
        workspace = Workspace(folder / "shop")
        assert is_free(workspace)
        early, versions, models = stages(workspace), DataVersions(workspace), ModelVersions(Ledger(workspace.root))
        versions.repair()
        check_whole(versions)
        assert versions.selected() == before or (models.current(), versions.selected()) == (1, cleaned)
        run(*retraining(workspace.root), log=folder / "again.log")
        assert {name: time for name, time in stages(workspace).items() if name in early} == early
        assert is_free(workspace)
        assert unfinished(workspace) == 0
        published = repository(workspace)
        assert (versions.selected(), len(versions.log())) == (cleaned, 2)
        check_whole(versions)
        assert (models.current(), published.versions(), published.configured()) == (1, (1,), (1,))
        published.verify(1)
        assert sha256(published.path(1) / "model.onnx") == graph

    kills.strike("retraining", promises="I20, I23", prepare=prepare, check=check)
