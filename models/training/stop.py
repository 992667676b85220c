"""SIGTERM during a training: a request to save what was learnt and to exit."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EXIT_CODE = 128 + signal.SIGTERM  # the code of a process that SIGTERM ended


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells if SIGTERM has come; inside the block the signal does nothing else.

    In a thread other than the main one, where Python does not allow a handler, the answer is always no.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    request = threading.Event()
    former = signal.signal(signal.SIGTERM, lambda *_: request.set())
    try:
        yield request.is_set
    finally:
        signal.signal(signal.SIGTERM, former)
