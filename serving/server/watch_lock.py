"""The one process that watches a server: state/watcher.json says which it is."""

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

END_TIMEOUT_S = 60.0  # one in the foreground stops its server before it ends


@contextmanager
def watching(state: Path) -> Iterator[None]:
    """Be the one that watches.

    Raises:
        AlreadyRunning: another process does.
    """
    state.mkdir(parents=True, exist_ok=True)
    with (state / "watcher.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(f"{state}: another process watches this server already; stop that one first") from None
        record = {"pid": os.getpid(), "born": process.birth(os.getpid())}
        write(state / "watcher.json", json.dumps(record).encode())
        try:
            yield
        finally:
            (state / "watcher.json").unlink(missing_ok=True)


def watcher(state: Path) -> int | None:
    """The pid of the process that watches, if one does."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads((state / "watcher.json").read_bytes())
        if process.birth(record["pid"]) == record["born"]:
            return int(record["pid"])
    return None


def end_watcher(state: Path) -> None:
    """Ask the process that watches to end, if there is another one that does, so that it starts nothing again."""
    pid = watcher(state)
    if pid is not None and pid != os.getpid():
        process.end(pid, born=str(process.birth(pid)), grace_s=END_TIMEOUT_S)
