"""The workspace's Triton endpoint: the one that runs, or one that lives as long as it is needed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from flows.settings import Settings
from flows.workspace import Workspace
from serving.access import Access
from serving.repository import ModelRepository
from serving.server import LocalServer, running


def repository(workspace: Workspace) -> ModelRepository:
    """The model repository of a workspace."""
    return ModelRepository(workspace.repository)


def local_server(workspace: Workspace, *, http_port: int, grpc_port: int, metrics_port: int) -> LocalServer:
    """The workspace's server on these ports; not started."""
    workspace.repository.mkdir(parents=True, exist_ok=True)
    return LocalServer(workspace.repository, state=workspace.state, environment=Settings().triton_env,
                       http_port=http_port, grpc_port=grpc_port, metrics_port=metrics_port)  # fmt: skip


@contextmanager
def endpoint(workspace: Workspace) -> Iterator[Access]:
    """The way to the running server; without one, to a server on free ports that ends afterwards."""
    server = running(workspace.state)
    if server is not None:
        yield server.access
        return
    http, grpc, metrics = free_ports(3)
    local = local_server(workspace, http_port=http, grpc_port=grpc, metrics_port=metrics)
    started = local.start()
    try:
        yield started.access
    finally:
        local.stop()


def stop_endpoint(workspace: Workspace) -> None:
    """Ends the workspace's server, if one runs."""
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
