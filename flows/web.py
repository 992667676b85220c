"""Serves the pages of a workspace: review, map, recognise, versions, runs and endpoint in a browser."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn

from durable import overwrite
from flows.errors import InputError
from flows.pages.access import People
from flows.pages.app import create_app
from flows.pages.site import Site
from flows.workspace import Workspace
from flows.workspace.files import or_disk_full
from serving.access import LOOPBACK
from serving.server.command import Listening

RUNNING = "web.json"  # in the folder state: address and process of the pages that run
ASKED_S = 2.0  # how long a server may take to say that it is there


def people_of(workspace: Workspace, listening: Listening) -> People:
    """The people who may use the pages: everyone on the loopback without TLS, elsewhere those with a token."""
    return People(workspace.state, open_to_all=listening.host in LOOPBACK and not listening.certificate)


def serve_pages(
    workspace: Workspace,
    listening: Listening,
    *,
    port: int,
    ready: Callable[[str], None],
    deliveries: Sequence[Path] = (),
    keeps_photos: bool = False,
) -> None:
    """Serves the pages until SIGINT or SIGTERM; calls `ready` with the address once it is bound.

    port: 0 takes a free one. keeps_photos: those that the page Recognise sends (flows.endpoint.recent).
    deliveries: folders in which deliveries may lie; without one, anywhere if no tokens are asked for, else nowhere.

    Raises:
        InputError: another program listens there, the address is not one of this machine, or the certificate is unusable.
        DiskFull: there is no space for the decisions that people will take.
    """
    people = people_of(workspace, listening)
    _check_certificate(listening)
    bound = _bound(listening.host, port)
    if people.open_to_all and not ipaddress.ip_address(bound.getsockname()[0]).is_loopback:
        bound.close()
        raise InputError(f"host {listening.host}: on this machine it is not the loopback; give --host 127.0.0.1")
    scheme = "https" if listening.certificate else "http"
    allowed = None if people.open_to_all and not deliveries else deliveries
    with or_disk_full("starting the pages"):
        site = Site(workspace, deliveries=allowed, keeps_photos=keeps_photos)
    config = uvicorn.Config(
        create_app(site, people),
        log_level="warning",
        server_header=False,
        proxy_headers=False,  # anyone can send them
        ws="none",
        ssl_certfile=listening.certificate,
        ssl_keyfile=listening.key,
        timeout_graceful_shutdown=5,
        timeout_keep_alive=60,  # a person may look at a photo for so long without another handshake of TLS
    )
    address = f"{scheme}://{_shown(listening.host)}:{bound.getsockname()[1]}/"
    with _noted(workspace, address):
        ready(address)
        threading.Thread(target=site.warm_up, daemon=True).start()
        uvicorn.Server(config).run(sockets=[bound])


def running_pages(workspace: Workspace) -> str:
    """Address of pages of this workspace that run on this machine already; "" if none do."""
    try:
        note = json.loads((workspace.state / RUNNING).read_bytes())
        os.kill(note["pid"], 0)  # a note outlives a killed server, and another workspace may use its port now
        address = str(note["address"])
        at = urlsplit(address)
        socket.create_connection((at.hostname or "", at.port or 0), timeout=ASKED_S).close()
    except (OSError, ValueError, KeyError):
        return ""
    return address


@contextmanager
def _noted(workspace: Workspace, address: str) -> Iterator[None]:
    """Notes the address in the folder state while the block runs; of several servers the last one is noted."""
    path, note = workspace.state / RUNNING, {"address": address, "pid": os.getpid()}
    overwrite(path, json.dumps(note).encode())
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            if json.loads(path.read_bytes()) == note:
                path.unlink()


def _bound(host: str, port: int) -> socket.socket:
    name = host.strip("[]")
    try:
        bound = socket.create_server((name, port), family=socket.AF_INET6 if ":" in name else socket.AF_INET)
        # asyncio sets it for sockets that name their protocol only; without it each answer waits 40 ms for an acknowledgement
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return bound
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"cannot listen on {host}:{port}: {reason}; choose another --port, or another --host"
        ) from None


def _check_certificate(listening: Listening) -> None:
    if listening.certificate is None or listening.key is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(listening.certificate, listening.key)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or error.strerror or str(error)
        raise InputError(
            f"{listening.certificate} with {listening.key}: {reason}; give a PEM certificate and the key that belongs to it"
        ) from None


def _shown(host: str) -> str:
    host = "127.0.0.1" if host == "localhost" else host.strip("[]")
    return f"[{host}]" if ":" in host else host
