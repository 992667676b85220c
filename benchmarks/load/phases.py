"""Phases of a switch: how long each takes, what it takes of the cores, and which of them a request fell into."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from load.anatomy import machine, spent
from load.endpoint import Served, cpu_seconds
from serving.repository.repository import CANDIDATE, ModelRepository
from serving.server.control import Endpoint


@dataclass(frozen=True)
class Phase:
    """One phase of one switch; times by time.perf_counter, shares of all cores during it.

    new: share that processes took which did not exist before the switch. One that ended in the phase is not counted.
    """

    name: str
    began: float
    ended: float
    new: float
    idle: float

    @property
    def seconds(self) -> float:
        """Its duration."""
        return self.ended - self.began


@dataclass
class Record:
    """Phases so far, and the processes that the server had before the switch."""

    ours: Served
    phases: list[Phase] = field(default_factory=list)
    former: set[int] = field(default_factory=set)

    def new_cpu_seconds(self) -> float:
        """Processor time of processes that did not exist before the switch."""
        return cpu_seconds(set(self.ours.processes()) - self.former)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Context that is recorded as a phase, also if it fails."""
        counters = {"new": self.new_cpu_seconds, "idle": partial(machine, "idle")}
        began = time.perf_counter()
        with spent(**counters) as used:
            try:
                yield
            finally:
                ended = time.perf_counter()
        cores = (ended - began) * (os.cpu_count() or 1)
        self.phases.append(Phase(name, began, ended, max(0.0, used["new"]) / cores, used["idle"] / cores))


class Switching(Endpoint):
    """Control of a server that records the phases of its switches."""

    def __init__(self, ours: Served, *, record: Record | None = None, **settings: Any) -> None:
        super().__init__(ours.access, **settings)
        self.record = record or Record(ours)
        self.of = "candidate" if CANDIDATE in self.model else "version"

    @property
    def phases(self) -> list[Phase]:
        """Phases of all switches so far."""
        return self.record.phases

    def names(self) -> list[str]:
        """Names of the phases in their order."""
        return list(dict.fromkeys(phase.name for phase in self.phases))

    def switch(self, repository: ModelRepository, version: int) -> None:
        """Switches as Endpoint does."""
        self.record.former = set(self.record.ours.processes())
        super().switch(repository, version)

    def load(self) -> None:
        """Loads as Endpoint does: the candidate, or the version with its warm-up and the change-over."""
        with self.record.phase(f"{self.of}_load"):
            super().load()

    def golden_check(self, repository: ModelRepository, version: int, *, at_most: int | None = None) -> None:
        """Checks as Endpoint does."""
        with self.record.phase(f"{self.of}_golden_photos"):
            super().golden_check(repository, version, at_most=at_most)

    def unload(self) -> None:
        """Unloads as Endpoint does."""
        with self.record.phase(f"{self.of}_unload"):
            super().unload()

    def _ask_in_batches(self, repository: ModelRepository, version: int) -> None:
        with self.record.phase(f"{self.of}_batches"):
            super()._ask_in_batches(repository, version)

    def _confirm(self, version: int) -> None:
        with self.record.phase(f"{self.of}_change_over"):
            super()._confirm(version)

    def _beside(self, model: str) -> Endpoint:
        limits = {"load_timeout_s": self.load_timeout_s, "answer_timeout_s": self.answer_timeout_s}
        return Switching(self.record.ours, record=self.record, model=model, **limits)


def phase_of(phases: Sequence[Phase], sent: float, answered: float) -> str | None:
    """Name of the phase that a request overlaps most; None if it overlaps none."""
    overlaps = ((min(answered, phase.ended) - max(sent, phase.began), phase.name) for phase in phases)
    longest, name = max(overlaps, default=(0.0, ""))
    return name if longest > 0 else None
