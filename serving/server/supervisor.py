"""Supervisor of a server that has to end together with the process that needs it.

`python -m serving.server.supervisor REPOSITORY STATE ENVIRONMENT` reads its standard input, a pipe from that process. DONE on
the pipe means that the process has stopped the server itself. If the process is killed, the kernel closes the pipe without
it, and the supervisor stops the server.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contract.environment import process_variables
from serving.server.server import LocalServer, RunningServer

DONE = b"done"


@contextmanager
def guarded(server: LocalServer) -> Iterator[RunningServer]:
    """Runs the server for the duration of the block; it ends even if this process is killed.

    Raises:
        ServingError: as LocalServer.start.
    """
    command = [
        sys.executable,
        "-m",
        "serving.server.supervisor",
        *map(str, (server.repository, server.state, server.environment)),
    ]
    supervisor = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        env=process_variables(),
    )  # fmt: skip
    try:
        started = server.start()
        try:
            yield started
        finally:
            server.stop()
    finally:
        supervisor.communicate(DONE)


def main() -> None:
    """Waits for the owner to end, and stops the server if the owner was killed."""
    repository, state, environment = map(Path, sys.argv[1:])
    server = LocalServer(repository, state, environment)
    if not os.read(sys.stdin.fileno(), len(DONE)):
        server.stop()


if __name__ == "__main__":
    main()
