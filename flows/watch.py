"""Keeps an endpoint alive: probes it every few seconds, reloads a dead model, and restarts a dead server."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field

from contract import CleanShelfError
from contract.environment import process_variables
from flows.endpoint.server import access, choose_registered, remote, serve_registered
from flows.errors import EndpointMissing, WorkspaceBusy, WorldError
from flows.registry.repository import repository
from flows.run.signals import stop_requested
from flows.settings import Settings
from flows.workspace import Workspace
from serving.access import Access
from serving.server import process
from serving.server.control import Endpoint
from serving.server.probe import Health, Probe
from serving.server.server import LocalServer, running
from serving.server.watch_lock import watcher, watching

ANSWER_TIMEOUT_S = 10.0
LONGEST_PAUSE_S = 60.0  # between failing attempts
CONFIRM_S = 1.0  # pause before a probe that confirms a fault
DETACH_TIMEOUT_S = 30.0

log = logging.getLogger("cleanshelf")


@dataclass
class Watch:
    """Probes one endpoint and repairs it.

    Args:
        local: restarts the workspace's own server; None for an external one.
    """

    workspace: Workspace
    local: LocalServer | None
    settings: Settings = field(default_factory=Settings)
    failures: int = 0
    last_health: Health = Health.ANSWERS
    _settled: tuple[int, ...] | None = None  # versions in config.pbtxt when it last agreed with the registry
    _probes: dict[Access, Probe] = field(default_factory=dict)

    def check(self) -> None:
        """Raises EndpointMissing if there is no endpoint to watch."""
        self._probe()

    def reconcile(self) -> None:
        """Probes once and repairs what is wrong. A failure is logged and tried again later.

        A model that does not answer is reloaded after the second probe that says so: on a busy machine the server may
        take a process for dead that is only late.
        """
        try:
            health = self._probe().check()
            is_confirmed = health is self.last_health
            self._log(health)
            if is_confirmed or health not in (Health.DEAD, Health.HUNG):
                self._repair(health)
            self.failures = 0
        except WorkspaceBusy:  # a switch is under way, and checks by itself that the model answers
            return
        except (CleanShelfError, ValueError, OSError) as error:  # ValueError: a damaged config.pbtxt
            self.failures += 1
            log.error("watch: %s", error)

    def pause_s(self, period_s: float) -> float:
        """Seconds until the next probe: longer after each failure, shorter to confirm a fault."""
        if self.failures:
            return max(period_s, min(LONGEST_PAUSE_S, 2.0**self.failures))
        return period_s if self.last_health in (Health.ANSWERS, Health.BUSY) else min(period_s, CONFIRM_S)

    def _repair(self, health: Health) -> None:
        if health is Health.ANSWERS:
            self._tidy()
        elif health is Health.GONE and self.local:
            self._start(self.local)
        elif health is Health.HUNG and self.local:
            self.local.stop()
            self._start(self.local)
        elif health in (Health.DEAD, Health.HUNG):
            self._reload(is_hung=health is Health.HUNG)

    def _reload(self, *, is_hung: bool) -> None:
        """Switches to the current model if another version is loaded, else unloads and reloads dead models."""
        probe = self._probe()
        with self.workspace.lock("watch", name="serving"):
            if serve_registered(self.workspace, probe.endpoint, self.settings):
                return
            for model in probe.heal(is_hung=is_hung):
                log.warning("watch: unloaded and reloaded %s; it answers", model)

    def _tidy(self) -> None:
        """Completes or undoes a killed switch: loads the current model and removes leftover candidates."""
        versions = repository(self.workspace, self.settings)
        configured = versions.configured()
        if configured == self._settled and not versions.leftovers():
            return
        control = self._probe().endpoint
        with self.workspace.lock("watch", name="serving"):
            serve_registered(self.workspace, control, self.settings)
            control.sweep(versions)
            self._settled = versions.configured()

    def _start(self, local: LocalServer) -> None:
        """Starts the server with the current model, unless it is running again."""
        with self.workspace.lock("watch", name="serving"):
            if running(local.state) is None:
                choose_registered(self.workspace, self.settings)
                started = local.start()
                log.warning("watch: restarted the server; it answers at %s", started.url)

    def _probe(self) -> Probe:
        """The probe of the running server, or of the last one: a restarted server keeps its address.

        Raises:
            EndpointMissing: no server is running, and none was.
        """
        found = access(self.workspace, self.settings) or next(iter(self._probes), None)
        if found is None:
            raise EndpointMissing("no endpoint is running for this workspace; start one with `cleanshelf serve`")
        if found not in self._probes:
            control = Endpoint(found, answer_timeout_s=ANSWER_TIMEOUT_S)
            self._probes = {found: Probe(control, repository(self.workspace, self.settings))}
        return self._probes[found]

    def _log(self, health: Health) -> None:
        if health is not self.last_health:
            log.warning("watch: the endpoint %s", health.value)
        self.last_health = health


def watch(workspace: Workspace, *, period_s: float, stop_server: bool = False) -> None:
    """Watches the endpoint until SIGINT, SIGTERM, or the removal of the workspace. Main thread only.

    Args:
        stop_server: stop the workspace's own server at the end, as `cleanshelf serve` does in the foreground.

    Raises:
        EndpointMissing: there is no endpoint.
        AlreadyRunning: another process watches it.
    """
    settings = Settings()
    server = None if remote(settings) else running(workspace.state)
    local = server.again(settings.triton_env) if server else None
    with stop_requested() as stop:
        try:
            with watching(workspace.state):
                endpoint_watch = Watch(workspace, local, settings)
                endpoint_watch.check()
                while not stop.wait(endpoint_watch.pause_s(period_s)) and workspace.state.is_dir():
                    endpoint_watch.reconcile()
        finally:
            if local and stop_server:
                local.stop()


def watch_detached(workspace: Workspace, *, period_s: float) -> None:
    """Starts a watcher process, with its log in state/watch.log, and returns once it watches; `serve --stop` ends it.

    Raises:
        WorldError: it did not start within `DETACH_TIMEOUT_S`.
    """
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "watch",
        "--workspace",
        str(workspace.root),
        "--period",
        str(period_s),
    ]
    process.spawn(command, variables=process_variables(), log=workspace.state / "watch.log")
    if not process.until(lambda: watcher(workspace.state) is not None, timeout_s=DETACH_TIMEOUT_S):
        raise WorldError(f"the watcher did not start; see {workspace.state / 'watch.log'}")
