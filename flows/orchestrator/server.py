"""The Prefect server that a workspace's flows report to: a child process of ours, unless there is one already.

Prefect would start one by itself. That one outlives a killed flow, dies of the terminal's Ctrl-C before the flow could say how
it ended (and the flow waits for it for a minute), and its failure to start is told after two. Ours leads a process group of
its own, and ends when we do, however we end (flows.run.child).
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.events import emit_event
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed, State

from flows.errors import InputError, WorldError
from flows.orchestrator.events import Event, PrefectServer, answers, scheduler_server
from flows.settings import REPOSITORY
from flows.workspace import Workspace
from serving.server.process import birth, until

HOST = "127.0.0.1"
START_TIMEOUT_S = 120.0  # 9 to 25 s were measured on two busy cores
GRACE_S = 10.0
FAILURE = re.compile(r"[\w.]+(Error|Exception): ")
UNFINISHED = ["RUNNING", "PENDING", "CANCELLING"]


@contextmanager
def orchestrated(workspace: Workspace) -> Iterator[str]:
    """The API's address, in force inside the block; what is reported is delivered before it ends.

    It is that of PREFECT_API_URL, or of the workspace's scheduler, or of a server that lives as long as the block. Callers hold
    `workspace.lock`.

    Raises:
        WorldError: the server did not start; with its last words.
    """
    running = scheduler_server(workspace)
    if url := PREFECT_API_URL.value():
        yield url
    elif running:
        with told(running.url):
            yield running.url
    else:
        with serving(workspace) as server, told(server.url):
            crash_unfinished(by_hand=True)
            yield server.url


@contextmanager
def told(url: str) -> Iterator[None]:
    """Flows in the block report to `url`."""
    with temporary_settings({PREFECT_API_URL: url}):
        try:
            yield
        finally:
            for worker in (APILogWorker, EventsWorker):  # they send in the background, and would miss the server
                worker.drain_all(timeout=GRACE_S, at_exit=False)


@contextmanager
def serving(workspace: Workspace, *, port: int = 0) -> Iterator[PrefectServer]:
    """A server on the workspace's database, that ends with the block or with us; port 0 is any that is free.

    Raises:
        InputError: the port is taken.
        WorldError: it did not start.
    """
    log = workspace.state / "prefect-server.log"
    with socket.socket() as listener:  # bound here: nobody can take the port while the server gets ready
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            raise InputError(f"port {port} cannot be had ({error.strerror}); choose another with --port") from None
        port = listener.getsockname()[1]
        child = _spawn(listener, log)
    try:
        _wait_ready(child, port, log)
        yield PrefectServer(f"http://{HOST}:{port}/api", child.pid, birth(child.pid) or "")
    finally:
        end(child)


def _spawn(listener: socket.socket, log: Path) -> subprocess.Popen[bytes]:
    app = ["--factory", "prefect.server.api.server:create_app", "--fd", str(listener.fileno())]
    command = [sys.executable, "-m", "flows.run.child", "uvicorn", *app, "--log-level", "error", "--lifespan", "on"]
    ours = {"PYTHONPATH": str(REPOSITORY), "PREFECT__SERVER_FINAL": "1", "PREFECT_SERVER_LOGGING_LEVEL": "ERROR"}
    with log.open("wb") as file:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file, stderr=file, env=os.environ | ours,
                                pass_fds=[listener.fileno()], start_new_session=True)  # fmt: skip


def _wait_ready(child: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and child.poll() is None:
        if answers(f"http://{HOST}:{port}/api"):
            return
        time.sleep(0.1)
    lines = log.read_text(errors="replace").splitlines()
    words = next((line for line in reversed(lines) if FAILURE.match(line)), "it said nothing")
    how = "ended" if child.poll() is not None else f"was not ready within {START_TIMEOUT_S:.0f} s"
    history = log.with_name("prefect") / "prefect.db"
    way_out = f"; {history} holds the history of runs and nothing else: move it away" if "sqlite3" in words else ""
    raise WorldError(f"Prefect's server {how} while it started: {words}; see {log}{way_out}")


def end(child: subprocess.Popen[bytes]) -> None:
    """Asks a process group to stop; what is left of it after a while is killed."""
    assert child.stdin is not None
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    until(lambda: child.poll() is not None and not _any_left(child.pid), timeout_s=GRACE_S)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    child.stdin.close()


def _any_left(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def crash_unfinished(*, by_hand: bool = False) -> int:
    """Marks flow runs as crashed that are not finished, and their tasks; how many runs. For when none can be at work.

    Nobody else does: a process that is killed says nothing, and its runs would be shown as running for ever.

    Args:
        by_hand: only those that no deployment started. They hold the workspace's lock as long as they live.
    """
    unfinished: dict[str, Any] = {"state": {"type": {"any_": UNFINISHED}}}
    runs_of: dict[str, Any] = unfinished | ({"deployment_id": {"is_null_": True}} if by_hand else {})
    crashed: State[None] = Crashed(message="its process ended without a word")
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(runs_of))
        for run in runs:
            of_run, open_tasks = (
                FlowRunFilter.model_validate({"id": {"any_": [run.id]}}),
                TaskRunFilter.model_validate(unfinished),
            )
            for task in client.read_task_runs(flow_run_filter=of_run, task_run_filter=open_tasks):
                client.set_task_run_state(task.id, crashed, force=True)
            client.set_flow_run_state(run.id, crashed, force=True)
    return len(runs)


def emit(event: Event) -> None:
    """From a flow, to the server that it reports to; Prefect adds which run it was."""
    emit_event(event.name, resource=event.resource, payload=event.payload)
