"""State of a workspace's endpoint for people: whether it runs, since when, its metrics, and whether it answers correctly."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from flows.endpoint.metrics import ModelMetrics, read_metrics
from flows.endpoint.server import access, remote
from flows.errors import WorldError
from flows.registry.repository import repository
from flows.registry.versions import ModelVersions
from flows.settings import Settings
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger
from serving.server.control import Endpoint
from serving.server.probe import Health, Probe
from serving.server.server import RunningServer, running
from serving.server.watch_lock import watcher

ANSWER_TIMEOUT_S = 10.0
SAYS = {
    Health.ANSWERS: "It repeats the recorded answers to a sample photo.",
    Health.BUSY: "It is busy: the check waited too long, and other requests are answered.",
    Health.DEAD: "It gives wrong answers or none; the watcher reloads the model.",
    Health.HUNG: "Requests wait and none is answered; the watcher restarts it.",
    Health.GONE: "It does not answer.",
}


@dataclass(frozen=True)
class EndpointState:
    """The endpoint of a workspace.

    is_external: it is the server that CLEANSHELF_TRITON_URL names, whose metrics are not read.
    is_watched: a process restarts it if it dies.
    uptime_s: seconds since its process started; None if it is external.
    why: the reason why there are no metrics, else "".
    """

    running: bool
    address: str | None = None
    is_external: bool = False
    is_watched: bool = False
    uptime_s: float | None = None
    current_model: int | None = None
    models: list[ModelMetrics] = field(default_factory=list)
    why: str = ""


@dataclass(frozen=True)
class EndpointHealth:
    """Result of a check by a golden photo: answers, is busy, does not answer, hangs, is down, or missing; `versions` are loaded."""

    health: str
    says: str
    versions: list[int]


def endpoint_state(workspace: Workspace) -> EndpointState:
    """The state of the endpoint, with its metrics if it is the workspace's own."""
    current = ModelVersions(Ledger(workspace.root)).current()
    if external := remote(Settings()):
        why = "An external server answers; its metrics are shown where it runs."
        return EndpointState(True, external.url, is_external=True, current_model=current, why=why)
    server = running(workspace.state)
    if server is None:
        return EndpointState(False, current_model=current)
    models, why = _metrics(server)
    return EndpointState(
        running=True,
        address=server.url,
        is_watched=watcher(workspace.state) is not None,
        uptime_s=_uptime_s(server),
        current_model=current,
        models=models,
        why=why,
    )


def check_endpoint(workspace: Workspace) -> EndpointHealth:
    """Asks the endpoint for one golden photo.

    Raises:
        Forbidden, Untrusted, RepositoryError: a check is not possible.
    """
    found = access(workspace)
    if found is None:
        return EndpointHealth("missing", "No endpoint is running.", [])
    with Endpoint(found, answer_timeout_s=ANSWER_TIMEOUT_S) as control:
        health = Probe(control, repository(workspace)).check()
        loaded = list(control.active()) if health is not Health.GONE else []
    return EndpointHealth(health.value, SAYS[health], loaded)


def _metrics(server: RunningServer) -> tuple[list[ModelMetrics], str]:
    try:
        return read_metrics(server.metrics_port), ""
    except WorldError as error:
        return [], str(error)


def _uptime_s(server: RunningServer) -> float:
    """Seconds since the process started; the kernel counts its start in ticks since the boot."""
    since_boot = float(Path("/proc/uptime").read_text().split()[0])
    return round(since_boot - int(server.born.rpartition(":")[2]) / os.sysconf("SC_CLK_TCK"), 1)
