"""The Prefect server that a workspace's flows report to: a child process of ours, unless one is running already.

Prefect would start one by itself. That one outlives a killed flow, dies of Ctrl-C in the terminal before the flow can
report how it ended (and the flow waits a minute for it), and reports its failure to start after two minutes. Ours leads its
own process group and ends with us, however we end (flows.run.child).
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import copy_context
from pathlib import Path
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any
from uuid import UUID

from httpx import HTTPStatusError
from prefect import __version__ as OURS
from prefect.client.base import ServerType
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelled, Crashed, State

from contract.environment import process_variables
from flows.errors import InputError, WorldError
from flows.orchestrator.events import LIMIT_S, PrefectServer, answers, scheduler_server
from flows.orchestrator.isolation import ACCESS, NAMED
from flows.workspace import Workspace
from serving.server.process import birth, until

HOST = "127.0.0.1"
START_TIMEOUT_S = 120.0  # measured: 9 to 25 s on two busy cores
GRACE_S = 10.0
DATABASE = "sqlite+aiosqlite:///prefect/prefect.db"  # below state/: in a URL, a whole path may end at a `?`
FAILURE = re.compile(r"[\w.]+(Error|Exception): ")
UNFINISHED = ("RUNNING", "PENDING", "CANCELLING")
WAY_OUT = "correct the variable, or unset it to use a server of the workspace"


@contextmanager
def orchestrated(workspace: Workspace) -> Iterator[str]:
    """API address of the server that flows in the block report to; all reports are delivered before the block ends.

    The server is that of PREFECT_API_URL, or the workspace's scheduler's, or one that runs for the block.

    Raises:
        WorldError: the named server cannot be used, or ours did not start; the message says why.
    """
    running = scheduler_server(workspace)
    if url := PREFECT_API_URL.value():
        check_server(url)
        yield url
    elif running:
        with reporting_to(running.url):
            _check_scheduler()
            yield running.url
    else:
        with prefect_server(workspace) as server, reporting_to(server.url), _running_flows(workspace):
            yield server.url


def check_server(url: str) -> None:
    """Raises WorldError if flows cannot report to the server that the user named."""
    if why := why_unusable(url):
        raise WorldError(f"{NAMED}: {why}; {WAY_OUT}")


def _check_scheduler() -> None:
    """Raises WorldError if the workspace's scheduler was started with another version of Prefect."""
    with get_client(sync_client=True) as client:
        if why := other_version(client):
            raise WorldError(f"the workspace's scheduler: {why}; stop `cleanshelf schedule` and start it again")


def why_unusable(url: str) -> str:
    """The reason why flows cannot report to the server at this API address, "" if they can; found within seconds."""
    found: Queue[str] = Queue()
    asking = copy_context()
    Thread(target=lambda: found.put(asking.run(_ask, url)), daemon=True).start()
    try:
        return found.get(timeout=LIMIT_S + 1)  # resolving a host name has no time limit
    except Empty:
        return f"{url} does not answer within {LIMIT_S:g} s"


def _ask(url: str) -> str:
    """Asks once, as flows do, for something that needs the same rights."""
    once = temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0})
    try:
        with once, get_client(sync_client=True, httpx_settings={"timeout": LIMIT_S}) as client:
            client.read_flow_runs(limit=1)
            why = other_version(client)
            return f"{why}; install the same version on both sides" if why else ""
    except HTTPStatusError as error:
        status = error.response.status_code
        if status in (401, 403):
            return f"{url} refuses access (HTTP status {status}; PREFECT_API_KEY or PREFECT_API_AUTH_STRING grants it)"
        if status >= 500:
            return f"{url} is not ready (HTTP status {status})"
        return f"{url} is not Prefect's API (HTTP status {status}; its address usually ends in /api)"
    except Exception as error:  # httpx, Prefect and the parsers of its answers share no base
        cause = str(error.__cause__ or error).partition("\n")[0]
        return f"{url} does not answer as Prefect's API does ({cause or type(error).__name__})"


def other_version(client: SyncPrefectClient) -> str:
    """The reason why the client's server does not go with our Prefect, "" if it does; patch releases may differ.

    Prefect itself refuses another major version only, and warns of unexpected behaviour if the server is older.
    """
    if client.server_type is ServerType.CLOUD:
        return ""
    theirs = client.api_version()
    if theirs.split(".")[:2] == OURS.split(".")[:2]:
        return ""
    return f"{str(client.api_url).rstrip('/')} runs Prefect {theirs}, and CleanShelf here runs {OURS}"


@contextmanager
def _running_flows(workspace: Workspace) -> Iterator[None]:
    """Marks this process as one that runs flows by hand. Without another one, unfinished runs are those of killed processes."""
    with (workspace.state / "flows").open("a") as file:
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mark_crashed(unfinished(workspace, by_hand=True))
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


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
def prefect_server(workspace: Workspace, *, port: int = 0, stop: Event | None = None) -> Iterator[PrefectServer]:
    """A new server on the workspace's database, which ends with the block or this process; port 0 for any free one.

    Raises:
        InputError: the port is taken.
        WorldError: the server did not start.
        KeyboardInterrupt: `stop` was set while it started.
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
        _wait_ready(child, port, log, stop or Event())
        yield PrefectServer(f"http://{HOST}:{port}/api", child.pid, birth(child.pid) or "")
    finally:
        end(child)


def _spawn(listener: socket.socket, log: Path) -> subprocess.Popen[bytes]:
    app = ["--factory", "prefect.server.api.server:create_app", "--fd", str(listener.fileno())]
    command = [sys.executable, "-m", "flows.run.child", "uvicorn", *app, "--log-level", "error", "--lifespan", "on"]
    ours = {
        "PREFECT__SERVER_FINAL": "1",
        "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": DATABASE,
    }
    variables = process_variables(**ours)
    variables = {name: value for name, value in variables.items() if name not in ACCESS}  # those are for another server
    (log.parent / "prefect").mkdir(exist_ok=True)
    with log.open("wb") as file:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file, stderr=file, env=variables, cwd=log.parent,
                                pass_fds=[listener.fileno()], start_new_session=True)  # fmt: skip


def _wait_ready(child: subprocess.Popen[bytes], port: int, log: Path, stop: Event) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and child.poll() is None:
        if answers(f"http://{HOST}:{port}/api"):
            return
        if stop.wait(0.1):
            raise KeyboardInterrupt
    lines = log.read_text(errors="replace").splitlines()
    cause = next((line for line in reversed(lines) if FAILURE.match(line)), "no error in its log")
    how = "ended during its start" if child.poll() is not None else f"was not ready within {START_TIMEOUT_S:.0f} s"
    history = log.with_name("prefect") / "prefect.db"
    newer = "alembic" in cause  # it does not know the state that the database is in
    what = (
        "was written by a newer Prefect: install that one again, or" if newer else "contains only the history of runs:"
    )
    way_out = f"; {history} {what} move it away" if newer or "sqlite3" in cause else ""
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


def unfinished(workspace: Workspace, *, by_hand: bool = False) -> list[UUID]:
    """Ids of the workspace's flow runs that Prefect shows as unfinished. The server may have those of others too.

    by_hand: only runs that no deployment started.
    """
    wanted: dict[str, Any] = _in_state(*UNFINISHED) | ({"deployment_id": {"is_null_": True}} if by_hand else {})
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(wanted))
    return [run.id for run in runs if _is_of(workspace, run.parameters)]


def _is_of(workspace: Workspace, parameters: dict[str, Any]) -> bool:
    """True if these are the parameters of a flow on the workspace; all flows of ours have it, or a run in it."""
    run = parameters.get("run")
    found = (run if isinstance(run, dict) else parameters).get("workspace")
    root = found.get("root") if isinstance(found, dict) else found
    return isinstance(root, str) and os.path.realpath(root) == os.path.realpath(workspace.root)


def mark_crashed(runs: Sequence[UUID]) -> None:
    """Marks these flow runs, and their unfinished tasks, as crashed.

    Call it only if none of them is alive. A killed process cannot report its end, and Prefect would show its runs as
    running for ever.
    """
    _end_runs(runs, Crashed(message="its process ended unexpectedly"), instead_of=UNFINISHED)


def mark_cancelled(runs: Sequence[UUID], why: str) -> None:
    """Marks flow runs that were ended on purpose as cancelled, with their tasks, also if they took that for a crash.

    Prefect cancels the runs of a runner that stops, but gives no reason.
    """
    _end_runs(runs, Cancelled(message=why), instead_of=(*UNFINISHED, "CRASHED", "CANCELLED"))


def _end_runs(runs: Sequence[UUID], state: State[None], *, instead_of: Sequence[str]) -> None:
    with get_client(sync_client=True) as client:
        for run in runs:
            this_run = FlowRunFilter.model_validate({"id": {"any_": [run]}} | _in_state(*instead_of))
            open_tasks = TaskRunFilter.model_validate(_in_state(*instead_of))
            for task in client.read_task_runs(flow_run_filter=this_run, task_run_filter=open_tasks):
                client.set_task_run_state(task.id, state, force=True)
            for found in client.read_flow_runs(flow_run_filter=this_run):
                client.set_flow_run_state(found.id, state, force=True)


def _in_state(*types: str) -> dict[str, Any]:
    return {"state": {"type": {"any_": [*types]}}}
