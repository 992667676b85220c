"""Which Prefect server stays up for a workspace, and what happened, told to it; nothing of Prefect is imported.

A rollback has to work while Prefect is down, and at once: it tells the server that stays up, if there is one, starts none, and
waits for none.
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
LIMIT_S = 3.0  # a server on a busy machine answers within one
FAILURES = (OSError, HTTPException, ValueError)  # the last of an address that is none


def prepare_prefect(state: Path) -> None:
    """Sets the environment variables that Prefect reads; must be called before Prefect is imported.

    Prefect's home lies in the workspace, it sends nothing to anyone, and its local server may take long to start: 9 to 25 s
    were measured on two busy cores, more than Prefect's own limit of 20 s.

    Raises:
        DiskFull: its server could not write its database, and would report that only after the time limit.
    """
    free = shutil.disk_usage(state).free
    if free < PREFECT_BYTES:
        raise DiskFull(
            f"{state}: {free / 1e6:.0f} MB are free, {PREFECT_BYTES / 1e6:.0f} are needed; free some space and run it again"
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
    """A server of ours that runs; `born` tells the process `pid` from a later one of the same number."""

    url: str
    pid: int
    born: str


@dataclass(frozen=True)
class Event:
    """Something that happened to `resource` (its id and its name), with figures (JSON values)."""

    name: str
    resource: dict[str, str]
    payload: dict[str, Any]


def happened(what: str, *, to: str, name: str, **payload: Any) -> Event:
    """The event `cleanshelf.<what>`, to `name` of the kind `to`: run, data, model, traffic."""
    resource = {"prefect.resource.id": f"cleanshelf.{to}.{name}", "prefect.resource.name": name}
    return Event(f"cleanshelf.{what}", resource, payload)


def selected(what: str, entry: Entry) -> Event:
    """The event `cleanshelf.data.<what>` of a data version that an entry of the history selects."""
    told = {"data_version": entry.id, "parent": entry.parent, "message": entry.message, "counts": entry.counts}
    return happened(f"data.{what}", to="data", name=entry.id[:12], **told)


def announce(workspace: Workspace, server: PrefectServer) -> None:
    """Lets other commands on the workspace find the scheduler's server."""
    overwrite(_file(workspace), json.dumps(asdict(server)).encode())


def scheduler_server(workspace: Workspace) -> PrefectServer | None:
    """The server of the workspace's scheduler, if it runs."""
    try:
        server = PrefectServer(**json.loads(_file(workspace).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return server if birth(server.pid) == server.born else None


def _file(workspace: Workspace) -> Path:
    return workspace.state / "prefect-server.json"


def standing_server(workspace: Workspace) -> str:
    """The API's address of PREFECT_API_URL, else of the workspace's scheduler, else ""."""
    scheduler = scheduler_server(workspace)
    return os.environ.get("PREFECT_API_URL") or (scheduler.url if scheduler else "")


def answers(url: str) -> bool:
    """Whether the server at this address is ready."""
    try:
        with urlopen(f"{url}/health", timeout=LIMIT_S) as answer:
            return bool(answer.status == 200)
    except FAILURES:
        return False


def post(workspace: Workspace, event: Event) -> None:
    """Tells the standing server, if there is one; what went wrong is a line of the log. It takes `LIMIT_S` and one at most."""
    if url := standing_server(workspace):
        sending = Thread(target=_send, args=(url, event), daemon=True)
        sending.start()
        sending.join(LIMIT_S + 1)  # to find the address of a name knows no limit
        if sending.is_alive():
            log.warning("%s: %s did not take the event: it does not answer", event.name, url)


def _send(url: str, event: Event) -> None:
    told = {"id": str(uuid4()), "occurred": datetime.now(UTC).isoformat(), "event": event.name, "resource": event.resource,
            "payload": event.payload}  # fmt: skip
    content, kind = json.dumps([told]).encode(), {"Content-Type": "application/json"}
    try:
        urlopen(Request(f"{url}/events", content, kind), timeout=LIMIT_S).close()
    except FAILURES as error:
        log.warning("%s: %s did not take the event: %s", event.name, url, error)
