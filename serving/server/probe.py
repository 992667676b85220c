"""Whether a server still does its work: asked by a golden image, not by its readiness calls."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from serving.errors import (
    GoldenMismatch,
    ModelNotReady,
    RequestRejected,
    RequestTimeout,
    ServerUnavailable,
    ServingError,
)
from serving.repository.repository import ModelRepository
from serving.server.control import Endpoint
from serving.server.encoded_endpoint import EncodedEndpoint

HUNG_S = 60.0  # the queue lets go of a request after 10 s, so by then everybody was failed several times over


class Health(Enum):
    """What one look found."""

    ANSWERS = "answers"
    BUSY = "is busy"  # no answer to us in time, but others get theirs
    DEAD = "does not answer"  # errors, or wrong answers: its process is gone
    HUNG = "computes nothing"  # requests wait, and none was answered for HUNG_S
    GONE = "is not there"  # nobody listens


@dataclass
class Probe:
    """Looks at the version that config.pbtxt names, by one golden image each time; as a file too where files are taken.

    A slow answer is no reason to unload a model that others wait for. So a timeout or a full queue is BUSY as long as
    the server's own count of answered requests rises, and HUNG only when it stood still for `hung_s`.
    """

    endpoint: Endpoint
    repository: ModelRepository
    hung_s: float = HUNG_S
    _answered: int = -1
    _alive_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        timeouts = {name: getattr(self.endpoint, name) for name in ("load_timeout_s", "answer_timeout_s")}
        self._encoded = EncodedEndpoint(self.endpoint.access, model=self.endpoint.model, **timeouts)

    def check(self) -> Health:
        """One look; it takes as long as the endpoint's `answer_timeout_s` at most.

        Raises:
            Forbidden, Untrusted, RepositoryError: looking is not possible at all.
        """
        versions = self.repository.configured()
        if not versions:  # before the first model there is nothing to ask
            return Health.ANSWERS if self.endpoint.live() else Health.GONE
        try:
            for endpoint in self._endpoints():
                for version in versions:
                    endpoint.golden_check(self.repository, version, at_most=1)
        except ServerUnavailable:
            return Health.GONE
        except (ModelNotReady, GoldenMismatch):
            return Health.DEAD
        except (RequestTimeout, RequestRejected):
            return self._progress()
        self._alive_at = time.monotonic()
        return Health.ANSWERS

    def heal(self, *, is_hung: bool = False) -> Iterator[str]:
        """Endpoint.heal of each model; the names of those that needed it."""
        for endpoint in self._endpoints():
            if endpoint.heal(self.repository, is_hung=is_hung):
                yield endpoint.model

    def _endpoints(self) -> list[Endpoint]:
        return [self.endpoint, self._encoded] if self._encoded.active() else [self.endpoint]

    def _progress(self) -> Health:
        try:
            answered = self.endpoint.answered()
        except ServingError:
            answered = self._answered
        if answered != self._answered:
            self._answered, self._alive_at = answered, time.monotonic()
        return Health.BUSY if time.monotonic() - self._alive_at < self.hung_s else Health.HUNG
