"""Prefect's environment, and events to a permanent Prefect server without waiting for it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.orchestrator.events import (
    LIMIT_S,
    PrefectServer,
    announce,
    answers,
    happened,
    post,
    scheduler_server,
    standing_server,
)
from flows.orchestrator.isolation import prepare_prefect
from flows.workspace import Workspace
from serving.server.process import birth
from tests.command_line import ROOT

EVENT = happened("model.rolled-back", to="model", name="1", model_version=1, instead_of=2)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A folder with the parts of a workspace that events need."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    (tmp_path / "state").mkdir()
    return Workspace(tmp_path)


def test_prefect_lives_in_the_workspace_and_tells_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    prepare_prefect(tmp_path)
    assert os.environ["PREFECT_HOME"] == str(tmp_path / "prefect")
    assert os.environ["DO_NOT_TRACK"] == "1"
    assert os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_an_event_says_what_happened_to_what() -> None:
    assert EVENT.name == "cleanshelf.model.rolled-back"
    assert EVENT.resource == {"prefect.resource.id": "cleanshelf.model.1", "prefect.resource.name": "1"}
    assert EVENT.payload == {"model_version": 1, "instead_of": 2}


def test_the_scheduler_is_found_while_it_lives_and_the_environment_comes_first(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert standing_server(workspace) == ""
    ours = PrefectServer("http://127.0.0.1:1/api", os.getpid(), birth(os.getpid()) or "")
    announce(workspace, ours)
    assert scheduler_server(workspace) == ours
    assert standing_server(workspace) == ours.url
    monkeypatch.setenv("PREFECT_API_URL", "http://other/api")
    assert standing_server(workspace) == "http://other/api"
    monkeypatch.delenv("PREFECT_API_URL")
    announce(workspace, PrefectServer(ours.url, os.getpid(), "another process"))
    assert standing_server(workspace) == ""


def test_without_a_server_nothing_is_said(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    post(workspace, EVENT)
    assert caplog.records == []


def test_a_server_that_hangs_costs_seconds_and_a_line(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        monkeypatch.setenv("PREFECT_API_URL", url)
        began = time.monotonic()
        post(workspace, EVENT)
        assert time.monotonic() - began < LIMIT_S + 10, "a limit, and not a speed"
    assert [record.getMessage() for record in caplog.records] == [
        f"{EVENT.name}: {url} did not accept the event: timed out"
    ]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/api", "nonsense", "http://[/api"])
def test_a_server_that_is_down_is_a_line(
    url: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", url)
    post(workspace, EVENT)
    assert f"cleanshelf.model.rolled-back: {url} did not accept the event: " in caplog.text
    assert not answers(url)


def test_a_rollback_imports_nothing_of_prefect() -> None:
    script = "import sys, flows.rollback, flows.feedback; print([name for name in sys.modules if name.startswith('prefect')])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
