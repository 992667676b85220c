"""A server that ends with the process that needs it, however that ends.

`python -m serving.server.supervisor REPOSITORY STATE ENVIRONMENT` waits at its standard input, a pipe from that process. A word
through it says that all is done; the kernel closes it without one when the process was killed, and then the server is stopped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.server.server import LocalServer, RunningServer

ROOT = Path(__file__).parents[2]
DONE = b"done"


@contextmanager
def guarded(server: LocalServer) -> Iterator[RunningServer]:
    """The server, started for the time of the block.

    Raises:
        ServingError: as LocalServer.start.
    """
    command = [
        sys.executable,
        "-m",
        "serving.server.supervisor",
        *map(str, (server.repository, server.state, server.environment)),
    ]
    guardian = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        started = server.start()
        try:
            yield started
        finally:
            server.stop()
    finally:
        guardian.communicate(DONE)


def main() -> None:
    """Stops the server of the state directory once its owner is gone without a word."""
    repository, state, environment = map(Path, sys.argv[1:])
    server = LocalServer(repository, state, environment)
    if not os.read(sys.stdin.fileno(), len(DONE)):
        server.stop()


if __name__ == "__main__":
    main()
