"""Finds the Prefect server of a workspace and sends events to it, without importing Prefect.

A rollback has to work at once, and while Prefect is down: it reports to a permanent server if there is one, and neither
starts a server nor waits for one.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.request import Request, urlopen
from uuid import uuid4

from durable import overwrite
from flows.errors import DiskFull
from flows.workspace import Workspace
from serving.server.process import birth

if TYPE_CHECKING:
    from flows.data.history import Entry

log = logging.getLogger("cleanshelf")
PREFECT_BYTES = 8_000_000  # a fresh database and its log take 5.5 MB
LIMIT_S = 3.0  # a server on a busy machine answers within 1 s
FAILURES = (OSError, HTTPException, ValueError)  # ValueError: the address is not a URL


def prepare_prefect(state: Path) -> None:
    """Sets the environment variables that Prefect reads; must be called before Prefect is imported.

    Prefect's home lies in the workspace, it sends nothing to anyone, and its local server may take long to start: 9 to
    25 s were measured on two busy cores, more than Prefect's own limit of 20 s.

    Raises:
        DiskFull: its server could not write its database, and would report that only after the time limit.
    """
    free = shutil.disk_usage(state).free
    if free < PREFECT_BYTES:
        raise DiskFull(
            f"{state}: {free / 1e6:.0f} MB are free, {PREFECT_BYTES / 1e6:.0f} are needed; "
            "free some space and run the command again"
        )
    os.environ |= {
        "PREFECT_HOME": str(state / "prefect"),
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
        "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_LEVEL": "CRITICAL",  # we report a failure once, without Prefect's traceback
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "cleanshelf",
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(state / "prefect" / "results"),
    }


@dataclass(frozen=True)
class PrefectServer:
    """A running server of ours; `born` distinguishes the process `pid` from a later one with the same number."""

    url: str
    pid: int
    born: str


@dataclass(frozen=True)
class Event:
    """An event of Prefect's: what happened to `resource` (id and name), with details in `payload` (JSON values)."""

    name: str
    resource: dict[str, str]
    payload: dict[str, Any]


def happened(what: str, *, to: str, name: str, **payload: Any) -> Event:
    """The event `cleanshelf.<what>` of the resource `name`; to: its kind, one of run, data, model, traffic."""
    resource = {"prefect.resource.id": f"cleanshelf.{to}.{name}", "prefect.resource.name": name}
    return Event(f"cleanshelf.{what}", resource, payload)


def selected(what: str, entry: Entry) -> Event:
    """The event `cleanshelf.data.<what>` of the data version that a history entry selects."""
    payload = {"data_version": entry.id, "parent": entry.parent, "message": entry.message, "counts": entry.counts}
    return happened(f"data.{what}", to="data", name=entry.id[:12], **payload)


def announce(workspace: Workspace, server: PrefectServer) -> None:
    """Writes down the scheduler's server, so that other commands on the workspace find it."""
    overwrite(_file(workspace), json.dumps(asdict(server)).encode())


def scheduler_server(workspace: Workspace) -> PrefectServer | None:
    """The server of the workspace's scheduler, or None if it is not running."""
    try:
        server = PrefectServer(**json.loads(_file(workspace).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return server if birth(server.pid) == server.born else None


def _file(workspace: Workspace) -> Path:
    return workspace.state / "prefect-server.json"


def standing_server(workspace: Workspace) -> str:
    """API address of the permanent server: PREFECT_API_URL, else that of the workspace's scheduler, else ""."""
    scheduler = scheduler_server(workspace)
    return os.environ.get("PREFECT_API_URL") or (scheduler.url if scheduler else "")


def answers(url: str) -> bool:
    """True if the server at this API address is ready."""
    try:
        with urlopen(f"{url}/health", timeout=LIMIT_S) as answer:
            return bool(answer.status == 200)
    except FAILURES:
        return False


def post(workspace: Workspace, event: Event) -> None:
    """Sends an event to the permanent server, if there is one, within `LIMIT_S` + 1 s; a failure is logged."""
    if url := standing_server(workspace):
        sending = Thread(target=_send, args=(url, event), daemon=True)
        sending.start()
        sending.join(LIMIT_S + 1)  # resolving a host name has no time limit
        if sending.is_alive():
            log.warning("%s: %s did not accept the event: it does not answer", event.name, url)


def _send(url: str, event: Event) -> None:
    body = {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": event.name,
        "resource": event.resource,
        "payload": event.payload,
    }
    content, headers = json.dumps([body]).encode(), {"Content-Type": "application/json"}
    try:
        urlopen(Request(f"{url}/events", content, headers), timeout=LIMIT_S).close()
    except FAILURES as error:
        log.warning("%s: %s did not accept the event: %s", event.name, url, error)
