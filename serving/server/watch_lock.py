"""Lock of the one process that watches a server; state/watcher.json names the process."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from durable import write
from serving.errors import AlreadyRunning
from serving.server import process

END_TIMEOUT_S = 60.0  # a watcher in the foreground stops its server before it ends


@contextmanager
def watching(state: Path) -> Iterator[None]:
    """Holds the lock for the duration of the block.

    Raises:
        AlreadyRunning: another process watches the server.
    """
    state.mkdir(parents=True, exist_ok=True)
    with (state / "watcher.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(f"{state}: another process already watches this server; stop it first") from None
        record = {"pid": os.getpid(), "born": process.birth(os.getpid())}
        write(state / "watcher.json", json.dumps(record).encode())
        try:
            yield
        finally:
            (state / "watcher.json").unlink(missing_ok=True)


def watcher(state: Path) -> int | None:
    """Pid of the process that watches the server; None if there is none."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads((state / "watcher.json").read_bytes())
        if process.birth(record["pid"]) == record["born"]:
            return int(record["pid"])
    return None


def end_watcher(state: Path) -> None:
    """Ends the process that watches, unless it is this one, so that it does not restart the server."""
    pid = watcher(state)
    if pid is not None and pid != os.getpid():
        process.end(pid, born=str(process.birth(pid)), grace_s=END_TIMEOUT_S)
