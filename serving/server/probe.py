"""Probe of a server by a golden image, because its readiness calls cannot be relied on."""

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

HUNG_S = 60.0  # the queue drops a request after 10 s, so by then several rounds of requests have failed


class Health(Enum):
    """Result of one probe."""

    ANSWERS = "answers"
    BUSY = "is busy"  # the probe timed out, but other clients get answers
    DEAD = "does not answer"  # errors or wrong answers: its process is gone
    HUNG = "hangs"  # requests wait, and none was answered for HUNG_S
    GONE = "is down"  # no server listens


@dataclass
class Probe:
    """Checks the version that config.pbtxt names by one golden image, and by an encoded one if the server takes these.

    A slow answer does not justify unloading a model that other clients wait for. So a timeout or a full queue means BUSY
    while the server's count of answered requests rises, and HUNG only after it has not changed for `hung_s`.
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
        """Probes each model once, and takes at most the endpoint's `answer_timeout_s` for each.

        Raises:
            Forbidden, Untrusted, RepositoryError: a probe is not possible.
        """
        versions = self.repository.configured()
        if not versions:  # no version is configured yet, so there is nothing to ask for
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
        """Heals each model with Endpoint.heal and yields the names of those that were reloaded."""
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
