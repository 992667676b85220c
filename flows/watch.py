"""Keeping an endpoint alive: look every few seconds, heal what is dead, start again what ended."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass, field

from contract import CleanShelfError
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
LONGEST_PAUSE_S = 60.0  # between attempts that keep failing
CONFIRM_S = 1.0
DETACH_TIMEOUT_S = 30.0

log = logging.getLogger("cleanshelf")


@dataclass
class Watch:
    """Looks at one endpoint and puts right what it finds.

    Args:
        local: how to start our own server again; None for one that somebody else runs.
    """

    workspace: Workspace
    local: LocalServer | None
    settings: Settings = field(default_factory=Settings)
    failures: int = 0
    last_health: Health = Health.ANSWERS
    _settled: tuple[int, ...] | None = None  # what config.pbtxt named when it agreed with the registry
    _watchdogs: dict[Access, Probe] = field(default_factory=dict)

    def check(self) -> None:
        """That there is an endpoint at all.

        Raises:
            EndpointMissing: there is none.
        """
        self._watchdog()

    def reconcile(self) -> None:
        """One look, and what follows from it. What fails is logged and tried again later.

        A model that does not answer is healed at the second look: on a machine that is short of time the server may once
        take a process for dead that is only late.
        """
        try:
            pulse = self._watchdog().check()
            again = pulse is self.last_health
            self._tell(pulse)
            if again or pulse not in (Health.DEAD, Health.HUNG):
                self._act(pulse)
            self.failures = 0
        except WorkspaceBusy:  # a switch is under way, and sees for itself whether the model answers
            return
        except (CleanShelfError, ValueError, OSError) as error:  # ValueError: a config.pbtxt that is none
            self.failures += 1
            log.error("watch: %s", error)

    def pause_s(self, period_s: float) -> float:
        """Until the next look: longer with every failure, shorter to confirm what was just found."""
        if self.failures:
            return max(period_s, min(LONGEST_PAUSE_S, 2.0**self.failures))
        return period_s if self.last_health in (Health.ANSWERS, Health.BUSY) else min(period_s, CONFIRM_S)

    def _act(self, pulse: Health) -> None:
        if pulse is Health.ANSWERS:
            self._tidy()
        elif pulse is Health.GONE and self.local:
            self._start(self.local)
        elif pulse is Health.HUNG and self.local:
            self.local.stop()
            self._start(self.local)
        elif pulse in (Health.DEAD, Health.HUNG):
            self._heal(is_hung=pulse is Health.HUNG)

    def _heal(self, *, is_hung: bool) -> None:
        watchdog = self._watchdog()
        with self.workspace.lock("watch", name="serving"):
            if serve_registered(self.workspace, watchdog.endpoint, self.settings):
                return
            for model in watchdog.heal(is_hung=is_hung):
                log.warning("watch: unloaded and loaded %s again; it answers", model)

    def _tidy(self) -> None:
        """After a switch that was killed: the version that the registry names, and no candidate left."""
        versions = repository(self.workspace, self.settings)
        chosen = versions.configured()
        if chosen == self._settled and not versions.leftovers():
            return
        control = self._watchdog().endpoint
        with self.workspace.lock("watch", name="serving"):
            serve_registered(self.workspace, control, self.settings)
            control.sweep(versions)
            self._settled = versions.configured()

    def _start(self, local: LocalServer) -> None:
        """With the version that the registry names."""
        with self.workspace.lock("watch", name="serving"):
            if running(local.state) is None:
                choose_registered(self.workspace, self.settings)
                started = local.start()
                log.warning("watch: started the server again; it answers at %s", started.url)

    def _watchdog(self) -> Probe:
        """The address of a server stays the same when it is started again."""
        found = access(self.workspace, self.settings) or next(iter(self._watchdogs), None)
        if found is None:
            raise EndpointMissing("no endpoint runs for this workspace; start one with `cleanshelf serve`")
        if found not in self._watchdogs:
            control = Endpoint(found, answer_timeout_s=ANSWER_TIMEOUT_S)
            self._watchdogs = {found: Probe(control, repository(self.workspace, self.settings))}
        return self._watchdogs[found]

    def _tell(self, pulse: Health) -> None:
        if pulse is not self.last_health:
            log.warning("watch: the endpoint %s", pulse.value)
        self.last_health = pulse


def watch(workspace: Workspace, *, period_s: float, stop_server: bool = False) -> None:
    """Watches until asked to end (SIGINT, SIGTERM), or until the workspace is gone. For the main thread.

    Args:
        stop_server: stop our own server at the end, as one that runs in the foreground.

    Raises:
        EndpointMissing: there is nothing to watch.
        AlreadyRunning: another process watches it.
    """
    settings = Settings()
    server = None if remote(settings) else running(workspace.state)
    local = server.again(settings.triton_env) if server else None
    with stop_requested() as stop:
        try:
            with watching(workspace.state):
                keeper = Watch(workspace, local, settings)
                keeper.check()
                while not stop.wait(keeper.pause_s(period_s)) and workspace.state.is_dir():
                    keeper.reconcile()
        finally:
            if local and stop_server:
                local.stop()


def watch_detached(workspace: Workspace, *, period_s: float) -> None:
    """Starts a process that watches, and returns once it does; `cleanshelf serve --stop` ends it. Its log: state/watch.log."""
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
    process.spawn(command, variables=os.environ, log=workspace.state / "watch.log")
    if not process.until(lambda: watcher(workspace.state) is not None, timeout_s=DETACH_TIMEOUT_S):
        raise WorldError(f"the process that watches did not start; see {workspace.state / 'watch.log'}")
