"""Prefect's environment, and events to a permanent Prefect server without waiting for it."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import ClassVar

import httpx
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
from flows.orchestrator.isolation import _concerns_prefect, prepare_prefect
from flows.workspace import Workspace
from serving.server.process import birth
from tests.command_line import ROOT
from tests.surroundings import rough

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


THEIRS = {
    "PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:///strange.db",
    "PREFECT_API_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:///strange.db",
    "prefect_server_api_base_path": "/strange",
    "PREFECT_SERVER_API_AUTH_STRING": "strange:secret",
    "PREFECT_PROFILE": "strange",
    "PREFECT_TEST_MODE": "1",
    "PREFECT_API_URL": " ",
    "PREFECT_API_KEY": "of no server",
}


def test_prefect_sees_nothing_of_the_users_own_prefect(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "environ", os.environ | THEIRS)
    prepare_prefect(tmp_path)
    assert THEIRS.keys() & os.environ.keys() == set()
    assert os.environ["PREFECT_PROFILES_PATH"].startswith(str(tmp_path)), "a profile would be read from .env otherwise"


def test_a_server_named_on_purpose_keeps_what_reaches_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "environ", os.environ | THEIRS | {"PREFECT_API_URL": "http://named/api"})
    prepare_prefect(tmp_path)
    assert {name: os.environ[name] for name in THEIRS.keys() & os.environ.keys()} == {
        "PREFECT_API_URL": "http://named/api",
        "PREFECT_API_KEY": "of no server",
    }


@pytest.mark.parametrize(
    ("proxy", "stays"),
    [
        ("http://user:password@proxy.example:3128", True),
        ("proxy.example:3128", True),
        ("HTTP://proxy.example", True),
        ("socks5://proxy.example:1080", importlib.util.find_spec("socksio") is not None),
        ("socks://proxy.example:1080", False),
        ("http://proxy.example:port", False),
        ("http://[::1", False),
        ("://", False),
    ],
)
def test_proxies_that_httpx_refuses_are_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, proxy: str, stays: bool
) -> None:
    monkeypatch.setattr(os, "environ", {"all_proxy": proxy, "HTTP_PROXY": proxy, "no_proxy": "[::1],fe80::/10"})
    prepare_prefect(tmp_path)
    assert ("all_proxy" in os.environ, "HTTP_PROXY" in os.environ) == (stays, stays)
    with httpx.Client():
        pass  # it reads the environment, and refuses some of it


SETTINGS = """
from pathlib import Path
from flows.orchestrator.isolation import _concerns_prefect, prepare_prefect
prepare_prefect(Path({state!r}))
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings
for updates in ({{}}, {{PREFECT_API_URL: "http://ours/api"}}):
    with temporary_settings(updates):
        settings = get_current_settings()
        print(settings.api.url, settings.server.api.base_path, settings.server.database.connection_url.get_secret_value())
"""


@pytest.mark.parametrize(
    ("name", "content", "concerns"),
    [
        ("pyproject.toml", b"[project]\nname = 'theirs'\ndependencies = ['prefect']", False),
        ("pyproject.toml", b"[tool.prefect.server]", True),
        ("pyproject.toml", b"[tool", True),
        ("prefect.toml", b"", True),
        (".env", b"DJANGO_SECRET=1", False),
        (".env", b"Prefect_Api_Url=http://127.0.0.1:9", True),
        (".env", b"A=\xff", True),
    ],
)
def test_prefect_is_imported_early_only_if_a_file_concerns_it(
    tmp_path: Path, name: str, content: bytes, concerns: bool
) -> None:
    (tmp_path / name).write_bytes(content)
    assert _concerns_prefect(tmp_path / name) == concerns, "the import takes a second, and small verbs need no Prefect"


def test_prefect_reads_no_file_of_the_current_folder(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    with rough(tmp_path / "here") as (here, variables):
        command = [sys.executable, "-P", "-c", SETTINGS.format(state=str(state))]
        env = os.environ | variables | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": ""}
        done = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, check=True)
    database = f"sqlite+aiosqlite:///{state / 'prefect' / 'prefect.db'}"
    assert done.stdout.splitlines() == [f"None None {database}", f"http://ours/api None {database}"]


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


class Receiver(BaseHTTPRequestHandler):
    """A server that is ready, and keeps the Authorization header of each event."""

    asked: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.asked.append(self.headers["Authorization"])
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer()

    def answer(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("name", "value", "header"),
    [
        ("PREFECT_API_KEY", "key", "Bearer key"),
        ("PREFECT_API_AUTH_STRING", "ann:secret", "Basic YW5uOnNlY3JldA=="),
        ("PREFECT_API_KEY", "", None),
    ],
)
def test_an_event_reaches_a_server_of_this_machine_past_a_proxy_with_the_users_rights(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    name: str, value: str, header: str | None,
) -> None:  # fmt: skip
    with HTTPServer(("127.0.0.1", 0), Receiver) as server, socket.create_server(("127.0.0.1", 0)) as silent:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/api"
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.setenv("PREFECT_API_URL", url)
        monkeypatch.setenv(name, value)
        assert answers(url)
        post(workspace, EVENT)
        server.shutdown()
    assert (Receiver.asked.pop(), caplog.records) == (header, [])


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


UNUSABLE = """
import sys, time
from pathlib import Path
from flows.orchestrator.isolation import _concerns_prefect, prepare_prefect
prepare_prefect(Path(sys.argv[1]))
from flows.orchestrator.server import why_unusable
for url in sys.argv[2:]:
    began = time.monotonic()
    print(why_unusable(url))
    assert time.monotonic() - began < 10
"""


class Refusing(Receiver):
    """A server that answers with the HTTP status in the path."""

    def answer(self) -> None:
        self.send_response(int(self.path.split("/")[1]))
        self.end_headers()


def test_a_named_server_that_cannot_be_used_is_told_within_seconds(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), Refusing) as server, socket.create_server(("127.0.0.1", 0)) as silent:
        Thread(target=server.serve_forever, daemon=True).start()
        base, hanging = f"http://127.0.0.1:{server.server_port}", f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        urls = [
            f"{base}/401/api",
            f"{base}/404/api",
            f"{base}/503/api",
            f"{base}/200/api",
            hanging,
            "http://127.0.0.1:9/api",
            "x",
        ]
        script = [sys.executable, "-P", "-c", UNUSABLE, str(tmp_path), *urls]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(script, env=env, capture_output=True, text=True, check=True)
        server.shutdown()
    refused, missing, busy, other, silence, down, nonsense = done.stdout.splitlines()
    assert (
        refused == f"{urls[0]} refuses access (HTTP status 401; PREFECT_API_KEY or PREFECT_API_AUTH_STRING grants it)"
    )
    assert missing == f"{urls[1]} is not Prefect's API (HTTP status 404; its address usually ends in /api)"
    assert busy == f"{urls[2]} is not ready (HTTP status 503)"
    for url, reason in zip(urls[3:], (other, silence, down, nonsense), strict=True):
        assert reason.startswith(f"{url} does not answer "), reason
    assert "Connection refused" in down


class Dated(Receiver):
    """A server without runs that claims to be the version of Prefect in the path."""

    def answer(self) -> None:
        if "/csrf-token" in self.path:
            return self.send_error(404)  # as servers without this protection do
        body = json.dumps([] if self.command == "POST" else self.path.split("/")[1]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_a_named_server_of_another_version_is_refused_in_one_line(tmp_path: Path) -> None:
    ours = version("prefect")
    major, minor = map(int, ours.split(".")[:2])
    older, newer, patch, next_major = f"{major}.{minor - 1}.9", f"{major}.{minor + 1}.0", f"{major}.{minor}.99", "9.0.0"
    with HTTPServer(("127.0.0.1", 0), Dated) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        urls = [f"{base}/{each}/api" for each in (older, newer, next_major, patch, ours)]
        script = [sys.executable, "-P", "-c", UNUSABLE, str(tmp_path), *urls]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(script, env=env, capture_output=True, text=True, check=True)
        server.shutdown()
    assert done.stdout.splitlines() == [
        *(f"{base}/{each}/api runs Prefect {each}, and CleanShelf here runs {ours}; install the same version on both sides"
          for each in (older, newer, next_major)),
        "", "",
    ]  # fmt: skip
