"""The Triton server of a workspace: an external one, the workspace's own, or a temporary one."""

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
    workspace: Workspace,
    *,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    listening: Listening = LOCAL,
    settings: Settings | None = None,
) -> LocalServer:
    """The workspace's own server on these ports, not started."""
    workspace.repository.mkdir(parents=True, exist_ok=True)
    return LocalServer(
        workspace.repository,
        workspace.state,
        (settings or Settings()).triton_env,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        listening=listening,
    )


def remote(settings: Settings) -> Access | None:
    """Address and tokens of the external server that the settings name, or None.

    Raises:
        BadRequest: a CA is given without TLS, or its file does not exist.
    """
    if not settings.triton_url:
        return None
    return Access(settings.triton_url, settings.triton_token, settings.triton_control_token, settings.triton_ca)


def access(workspace: Workspace, settings: Settings | None = None) -> Access | None:
    """Access to the external server that the settings name, else to the workspace's own server if it runs."""
    server = running(workspace.state)
    return remote(settings or Settings()) or (server.access if server else None)


def now_serves(workspace: Workspace, version: int) -> str:
    """Sentence that this version is the current model, and whether a server answers with it."""
    if access(workspace):
        return f"model version {version} answers"
    return f"model version {version} is the current model; no endpoint is running, and `cleanshelf serve` starts one with it"


@contextmanager
def endpoint(workspace: Workspace, settings: Settings | None = None) -> Iterator[Access]:
    """Access to the running server, or to a temporary one on free ports.

    The temporary one ends with the block, and also if this process is killed.
    """
    settings = settings or Settings()
    found = access(workspace, settings)
    if found is not None:
        yield found
        return
    http, grpc, metrics = free_ports(3)
    choose_registered(workspace, settings)
    server = local_server(workspace, http_port=http, grpc_port=grpc, metrics_port=metrics, settings=settings)
    with guarded(server) as started:
        yield started.access


def choose_registered(workspace: Workspace, settings: Settings | None = None) -> None:
    """Configures the current model for a server that is about to start, whatever a killed switch left in config.pbtxt.

    Raises:
        CorruptVersion: files of that version have changed.
    """
    wanted, versions = ModelVersions(Ledger(workspace.root)).current(), repository(workspace, settings)
    versions.sweep()
    if wanted is not None:
        versions.verify(wanted)
    versions.configure(() if wanted is None else (wanted,))


def serve_registered(workspace: Workspace, control: Endpoint, settings: Settings | None = None) -> bool:
    """Switches the running server to the current model, configured as the settings say; True if that was needed.

    The caller holds the lock "serving".
    """
    wanted, versions = ModelVersions(Ledger(workspace.root)).current(), repository(workspace, settings)
    active = control.active()
    if wanted is None or (active == (wanted,) and versions.is_configured(wanted)):
        return False
    log.info("endpoint: version %d is the current model, the server has %s; switching", wanted, list(active) or "none")
    control.switch(versions, wanted)
    return True


def start_endpoint(
    workspace: Workspace, *, http_port: int, grpc_port: int, metrics_port: int, listening: Listening = LOCAL
) -> RunningServer:
    """Starts the workspace's own server with the current model.

    Raises:
        InputError: the settings name an external server.
        ServingError: the server did not start, or does not answer.
    """
    settings = Settings()
    if url := settings.triton_url:
        raise InputError(f"CLEANSHELF_TRITON_URL names the external server {url}; unset it to run one here")
    with workspace.lock("serve", name="serving"):
        if (
            running(workspace.state) is None
        ):  # else start() refuses, and the configuration of the running server must stay
            choose_registered(workspace, settings)
        return local_server(
            workspace,
            http_port=http_port,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            listening=listening,
            settings=settings,
        ).start()


def stop_endpoint(workspace: Workspace) -> None:
    """Stops the workspace's own server and its watcher, if they run."""
    end_watcher(workspace.state)
    local_server(workspace, http_port=0, grpc_port=0, metrics_port=0).stop()


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nothing listens on at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
