"""The workspace's Triton endpoint: one that somebody else runs, our own, or one that lives as long as it is needed."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from flows.errors import InputError
from flows.registry.repository import repository
from flows.registry.versions import ModelVersions
from flows.settings import Settings
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger
from serving.access import Access
from serving.server.command import Listening
from serving.server.control import Endpoint
from serving.server.server import LOCAL, LocalServer, RunningServer, running
from serving.server.supervisor import guarded
from serving.server.watch_lock import end_watcher

log = logging.getLogger("cleanshelf")


def local_server(
    workspace: Workspace, *, http_port: int, grpc_port: int, metrics_port: int, listening: Listening = LOCAL
) -> LocalServer:
    """The workspace's server on these ports; not started."""
    workspace.repository.mkdir(parents=True, exist_ok=True)
    return LocalServer(workspace.repository, workspace.state, Settings().triton_env,
                       http_port=http_port, grpc_port=grpc_port, metrics_port=metrics_port, listening=listening)  # fmt: skip


def remote(settings: Settings) -> Access | None:
    """Address and tokens of the external server that the settings name, or None.

    Raises:
        BadRequest: a CA is given without TLS, or its file does not exist.
    """
    if not settings.triton_url:
        return None
    return Access(settings.triton_url, settings.triton_token, settings.triton_control_token, settings.triton_ca)


def access(workspace: Workspace) -> Access | None:
    """The way to the server that the settings name, else to the workspace's own where it runs."""
    server = running(workspace.state)
    return remote(Settings()) or (server.access if server else None)


@contextmanager
def endpoint(workspace: Workspace) -> Iterator[Access]:
    """The way to the server; where none runs, to one on free ports that ends afterwards, also when we are killed."""
    found = access(workspace)
    if found is not None:
        yield found
        return
    http, grpc, metrics = free_ports(3)
    choose_registered(workspace)
    with guarded(local_server(workspace, http_port=http, grpc_port=grpc, metrics_port=metrics)) as started:
        yield started.access


def choose_registered(workspace: Workspace) -> None:
    """Let a server that is yet to start serve what the registry names, whatever a killed switch left in config.pbtxt.

    Raises:
        CorruptVersion: that version's files are not what they were.
    """
    wanted, versions = ModelVersions(Ledger(workspace.root)).current(), repository(workspace)
    versions.sweep()
    if wanted is not None:
        versions.verify(wanted)
    versions.configure(() if wanted is None else (wanted,))


def serve_registered(workspace: Workspace, control: Endpoint) -> bool:
    """Let the running server serve what the registry names, as the settings say; whether that was needed.

    For the holder of the lock `serving`.
    """
    wanted, versions = ModelVersions(Ledger(workspace.root)).current(), repository(workspace)
    active = control.active()
    if wanted is None or (active == (wanted,) and versions.is_configured(wanted)):
        return False
    log.info("endpoint: version %d is to answer, the server has %s; switching", wanted, list(active) or "none")
    control.switch(versions, wanted)
    return True


def start_endpoint(
    workspace: Workspace, *, http_port: int, grpc_port: int, metrics_port: int, listening: Listening = LOCAL
) -> RunningServer:
    """Starts the workspace's own server with the version that the registry names.

    Raises:
        InputError: the settings name a server elsewhere.
        ServingError: it did not start, or does not answer.
    """
    if url := Settings().triton_url:
        raise InputError(f"CLEANSHELF_TRITON_URL names the server {url}; unset it to run one here")
    with workspace.lock("serve", name="serving"):
        if running(workspace.state) is None:  # else it is refused below, and its configuration is left alone
            choose_registered(workspace)
        return local_server(
            workspace, http_port=http_port, grpc_port=grpc_port, metrics_port=metrics_port, listening=listening
        ).start()


def stop_endpoint(workspace: Workspace) -> None:
    """Ends the workspace's own server, if one runs, and who watches it."""
    end_watcher(workspace.state)
    local_server(workspace, http_port=0, grpc_port=0, metrics_port=0).stop()


def free_ports(count: int) -> list[int]:
    """Ports on the loopback that nothing listens on at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
