"""Finds the Prefect server of a workspace and sends events to it, without importing Prefect.

A rollback has to work at once, and while Prefect is down: it reports to a permanent server if there is one, and neither
starts a server nor waits for one.
"""

from __future__ import annotations

import base64
import json
import logging
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.request import ProxyHandler, Request, build_opener
from uuid import uuid4

from contract.environment import is_direct
from durable import overwrite
from flows.workspace import Workspace
from serving.server.process import birth

if TYPE_CHECKING:
    from flows.data.history import Entry

log = logging.getLogger("cleanshelf")
LIMIT_S = 3.0  # a server on a busy machine answers within 1 s
FAILURES = (OSError, HTTPException, ValueError)  # ValueError: the address is not a URL


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


def named_server() -> str:
    """API address of the server that the environment names in PREFECT_API_URL, "" if none."""
    return os.environ.get("PREFECT_API_URL", "").strip()


def standing_server(workspace: Workspace) -> str:
    """API address of the permanent server: PREFECT_API_URL, else that of the workspace's scheduler, else ""."""
    scheduler = scheduler_server(workspace)
    return named_server() or (scheduler.url if scheduler else "")


def answers(url: str) -> bool:
    """True if the server at this API address is ready."""
    try:
        with _open(Request(f"{url}/health")) as answer:
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
    headers = {"Content-Type": "application/json"} | _credentials()
    try:
        _open(Request(f"{url}/events", json.dumps([body]).encode(), headers)).close()
    except FAILURES as error:
        log.warning("%s: %s did not accept the event: %s", event.name, url, error)


def _open(request: Request) -> Any:
    """The server's answer; a proxy is not asked for a server on this machine."""
    host = request.host.rpartition(":")[0] or request.host
    opener = build_opener(ProxyHandler({})) if is_direct(host) else build_opener()
    return opener.open(request, timeout=LIMIT_S)


def _credentials() -> dict[str, str]:
    """The header by which a server that the environment names knows the user, as Prefect's client sends it."""
    if key := os.environ.get("PREFECT_API_KEY"):
        return {"Authorization": f"Bearer {key}"}
    if text := os.environ.get("PREFECT_API_AUTH_STRING"):
        return {"Authorization": f"Basic {base64.b64encode(text.encode()).decode()}"}
    return {}
