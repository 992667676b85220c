"""A workspace and its locks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from flows.errors import WorkspaceBusy, WorkspaceMissing
from flows.workspace import Workspace


def test_init_twice_changes_nothing_and_a_half_made_one_is_completed(tmp_path: Path) -> None:
    root = tmp_path / 'my "new" shop'
    Workspace.init(root)
    files = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    Workspace.init(root)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == files
    (root / ".dvc" / "config").write_text("")
    (root / "state" / "staging").rmdir()
    Workspace.init(root)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == files


def test_init_keeps_the_users_settings(tmp_path: Path) -> None:
    workspace = Workspace.init(tmp_path)
    (tmp_path / ".dvc" / "config").write_text("[core]\n    remote = mine\n")
    (tmp_path / ".gitignore").write_text("*.log")
    Workspace.init(tmp_path)
    assert "mine" in (tmp_path / ".dvc" / "config").read_text()
    assert (tmp_path / ".gitignore").read_text().splitlines() == [
        "*.log",
        "/data",
        "/versions",
        "/runs",
        "/repository",
        "/remote",
        "/state",
    ]
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=workspace.root, capture_output=True, text=True, check=True
    ).stdout
    assert "state" not in status
    assert "remote" not in status


def test_find_searches_upwards_and_names_the_command_for_a_new_one(tmp_path: Path) -> None:
    workspace = Workspace.init(tmp_path / "shop")
    assert Workspace.find(workspace.runs) == workspace
    with pytest.raises(WorkspaceMissing, match="cleanshelf init"):
        Workspace.find(tmp_path)


def test_the_lock_names_its_holder(tmp_path: Path) -> None:
    workspace = Workspace.init(tmp_path)
    with (
        workspace.lock("retrain"),
        pytest.raises(WorkspaceBusy, match=r"`retrain` \(process \d+\)"),
        workspace.lock("x"),
    ):
        pass
    with workspace.lock("again"), workspace.lock("promote", name="serving"):
        pass
