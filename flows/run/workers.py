"""A module run by several workers on this machine with torch's launcher: `python -m flows.run.workers N MODULE ARGUMENTS...`.

The launcher gives each worker a session of its own, which a signal to our process group does not reach. So each worker is a
flows.run.child as well, with the same standard input: when the flow closes it or ends, all workers end. SIGTERM to the
launcher reaches all workers.

If a worker is killed, by the kernel for its memory or by a fault of its GPU, all start once more, from their checkpoint.
The launcher's own restarts would also repeat errors and refused input.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from uuid import uuid4

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

HOST = (
    "127.0.0.1"  # by default the launcher looks up the machine's own name, which may not resolve, and waits for minutes
)
MEETING = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{HOST}:0", "--local-addr", HOST)
RESTARTS = 1


def main() -> None:
    """Runs the workers. Exits with the code of the worker that failed first, whose output comes last."""
    logging.disable()  # the launcher's own lines would come after the last line of the worker
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # gloo would look up the name, too
    _, count, *command = sys.argv
    for restarts_left in reversed(range(RESTARTS + 1)):
        code, killed_by = launch(count, command)
        if killed_by:
            then = "all start again, from their checkpoint" if restarts_left else "all ended"
            print(f"a worker was killed by signal {killed_by}; {then}", flush=True)
        if not killed_by or not restarts_left:
            sys.exit(code)


def launch(count: str, command: list[str]) -> tuple[int, int]:
    """Exit code of the worker that failed first, and the signal by which a worker was killed; 0 for none."""
    options = ["--nnodes", "1", "--nproc-per-node", count, *MEETING, "--rdzv-id", uuid4().hex, "--max-restarts", "0"]
    try:
        run.main([*options, "-m", "flows.run.child", *command])
    except SignalException as end:  # the workers have ended
        return 128 + end.sigval, 0
    except ChildFailedError as error:
        first = error.get_first_failure()[1]
        at_first = [each for each in error.failures.values() if each.timestamp <= first.timestamp + 1]
        # the partners of a killed worker fail in the same moment; the launcher's own signals are SIGTERM, and later SIGKILL
        signals = [-each.exitcode for each in at_first if each.exitcode < 0 and each.exitcode != -signal.SIGTERM]
        return (128 + signals[0], signals[0]) if signals else (first.exitcode, 0)
    return 0, 0


if __name__ == "__main__":
    main()
