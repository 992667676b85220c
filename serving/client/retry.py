"""Rules for repeating a failed request: when, and after which pause.

A request is repeated only if that may help: the queue was full, the server was away, its model was being healed, or the
version was switched during the request. An inference changes nothing, so a request whose connection broke may be
repeated too. A request that was invalid, forbidden or too slow is not repeated.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

from serving.errors import ModelNotReady, RequestRejected, ServerUnavailable, ServingError, VersionNotFound

FIRST_S = 0.05
LONGEST_S = 1.0


@dataclass
class Retry:
    """State of one request over all its attempts.

    Pauses double and are drawn from [0, pause], so that clients rejected at the same time do not return at the same time
    ("full jitter": Brooker, Exponential Backoff and Jitter, 2015).

    Args:
        timeout_s: deadline of the request from now, including all attempts and pauses.
        patience_s: time for which a server, or its model, may be away.
    """

    timeout_s: float
    patience_s: float
    _start: float = field(default_factory=time.monotonic)
    _away_since: float | None = None
    _tries: int = 0

    def left_s(self) -> float:
        """Seconds to the deadline; never 0, which gRPC takes for no deadline."""
        return max(self._start + self.timeout_s - time.monotonic(), 0.001)

    def pause_s(self, error: ServingError) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            ServingError: `error` itself, if another attempt would not help or the time is up.
        """
        now = time.monotonic()
        end = self._start + self.timeout_s
        if isinstance(error, ServerUnavailable | ModelNotReady):
            self._away_since = now if self._away_since is None else self._away_since
            end = min(end, self._away_since + self.patience_s)
        elif isinstance(error, RequestRejected | VersionNotFound):
            self._away_since = None
        else:
            raise error
        pause = random.uniform(0, min(LONGEST_S, FIRST_S * 2**self._tries))
        self._tries += 1
        if now + pause >= end:
            raise error
        return pause
