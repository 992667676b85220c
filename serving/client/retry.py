"""When a request that failed may be asked again, and how long to wait before.

Only where that is safe and may help: the queue was full, the server was away or its model was being healed, a version
was switched while it was asked. An inference changes nothing, so that a connection that broke in the middle may be tried
again, too. A request that is wrong, forbidden or too slow stays so.
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
    """One request with all its tries.

    Pauses double and are drawn from [0, pause], so that clients that were refused together do not come back together
    ("full jitter": Brooker, Exponential Backoff and Jitter, 2015).

    Args:
        timeout_s: deadline of the request, counted from now, its tries and pauses included.
        patience_s: how long a server, or its model, may be away.
    """

    timeout_s: float
    patience_s: float
    _start: float = field(default_factory=time.monotonic)
    _away_since: float | None = None
    _tries: int = 0

    def left_s(self) -> float:
        """Time to the deadline; never 0, which gRPC takes for none."""
        return max(self._start + self.timeout_s - time.monotonic(), 0.001)

    def pause_s(self, error: ServingError) -> float:
        """How long to wait before the next try.

        Raises:
            ServingError: `error` itself, where asking again would not help or the time is up.
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
