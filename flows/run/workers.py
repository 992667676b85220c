"""A module run by several workers on this machine with torch's launcher: `python -m flows.run.workers N MODULE ARGUMENTS...`.

The launcher gives each worker a session of its own, which a signal to our process group does not reach. So each worker is a
flows.run.child as well, with the same standard input: when the flow closes it or ends, all workers end.
"""

from __future__ import annotations

import logging
import os
import sys
from uuid import uuid4

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

HOST = (
    "127.0.0.1"  # by default the launcher looks up the machine's own name, which may not resolve, and waits for minutes
)
MEETING = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{HOST}:0", "--local-addr", HOST)


def main() -> None:
    """Runs the workers. Exits with the code of the worker that failed first, whose output comes last."""
    logging.disable()  # the launcher's own lines would come after the last line of the worker
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # gloo would look up the name, too
    _, count, *command = sys.argv
    launch = ["--nnodes", "1", "--nproc-per-node", count, *MEETING, "--rdzv-id", uuid4().hex, "--max-restarts", "0"]
    try:
        run.main([*launch, "-m", "flows.run.child", *command])
    except ChildFailedError as error:
        sys.exit(error.get_first_failure()[1].exitcode)


if __name__ == "__main__":
    main()
