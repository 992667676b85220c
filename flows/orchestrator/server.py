"""The Prefect server that a workspace's flows report to: a child process of ours, unless one is running already.

Prefect would start one by itself. That one outlives a killed flow, dies of Ctrl-C in the terminal before the flow can
report how it ended (and the flow waits a minute for it), and reports its failure to start after two minutes. Ours leads its
own process group and ends with us, however we end (flows.run.child).
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
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed, State

from flows.errors import InputError, WorldError
from flows.orchestrator.events import PrefectServer, answers, scheduler_server
from flows.settings import REPOSITORY
from flows.workspace import Workspace
from serving.server.process import birth, until

HOST = "127.0.0.1"
START_TIMEOUT_S = 120.0  # measured: 9 to 25 s on two busy cores
GRACE_S = 10.0
FAILURE = re.compile(r"[\w.]+(Error|Exception): ")
UNFINISHED = ["RUNNING", "PENDING", "CANCELLING"]


@contextmanager
def orchestrated(workspace: Workspace) -> Iterator[str]:
    """API address of the server that flows in the block report to; all reports are delivered before the block ends.

    The server is that of PREFECT_API_URL, or the workspace's scheduler's, or one that runs for the block. The caller
    holds `workspace.lock`.

    Raises:
        WorldError: the server did not start; the message quotes its last error.
    """
    running = scheduler_server(workspace)
    if url := PREFECT_API_URL.value():
        yield url
    elif running:
        with reporting_to(running.url):
            yield running.url
    else:
        with prefect_server(workspace) as server, reporting_to(server.url):
            crash_unfinished(by_hand=True)
            yield server.url


@contextmanager
def reporting_to(url: str) -> Iterator[None]:
    """Makes flows in the block report to the server at `url`."""
    with temporary_settings({PREFECT_API_URL: url}):
        try:
            yield
        finally:
            for worker in (APILogWorker, EventsWorker):  # they send in the background, and the server may end soon
                worker.drain_all(timeout=GRACE_S, at_exit=False)


@contextmanager
def prefect_server(workspace: Workspace, *, port: int = 0) -> Iterator[PrefectServer]:
    """A new server on the workspace's database, which ends with the block or this process; port 0 for any free one.

    Raises:
        InputError: the port is taken.
        WorldError: the server did not start.
    """
    log = workspace.state / "prefect-server.log"
    with socket.socket() as listener:  # bound here, so that no other process takes the port while the server starts
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            raise InputError(f"port {port} is not available ({error.strerror}); choose another with --port") from None
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
    cause = next((line for line in reversed(lines) if FAILURE.match(line)), "no error in its log")
    how = "ended during its start" if child.poll() is not None else f"was not ready within {START_TIMEOUT_S:.0f} s"
    history = log.with_name("prefect") / "prefect.db"
    way_out = f"; {history} contains only the history of runs: move it away" if "sqlite3" in cause else ""
    raise WorldError(f"Prefect's server {how}: {cause}; see {log}{way_out}")


def end(child: subprocess.Popen[bytes]) -> None:
    """Stops the process group of a child; what is left after `GRACE_S` is killed."""
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
    """Marks unfinished flow runs and their tasks as crashed and returns the number of runs.

    Call it only while no run is alive. A killed process cannot report its end, and Prefect would show its runs as running for ever.

    Args:
        by_hand: only runs that no deployment started; such a run holds the workspace's lock while it lives.
    """
    unfinished: dict[str, Any] = {"state": {"type": {"any_": UNFINISHED}}}
    runs_of: dict[str, Any] = unfinished | ({"deployment_id": {"is_null_": True}} if by_hand else {})
    crashed: State[None] = Crashed(message="its process ended unexpectedly")
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(runs_of))
        for run in runs:
            this_run = FlowRunFilter.model_validate({"id": {"any_": [run.id]}})
            open_tasks = TaskRunFilter.model_validate(unfinished)
            for task in client.read_task_runs(flow_run_filter=this_run, task_run_filter=open_tasks):
                client.set_task_run_state(task.id, crashed, force=True)
            client.set_flow_run_state(run.id, crashed, force=True)
    return len(runs)
