"""A module run by several workers on this machine: `python -m flows.run.workers N MODULE ARGUMENTS...`, with torch's own launcher.

The launcher gives each worker a session of its own, beyond the reach of a signal to our process group. So each is a
flows.run.child as well, on the same standard input: when the flow closes it, or ends, all of them end.
"""

from __future__ import annotations

import logging
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main() -> None:
    """Ends with the exit code of the worker that failed first; what it said is the last that is printed."""
    logging.disable()  # the launcher's own lines, which would come after the worker's last
    _, count, *command = sys.argv
    try:
        run.main(["--standalone", "--nproc_per_node", count, "-m", "flows.run.child", *command])
    except ChildFailedError as error:
        sys.exit(error.get_first_failure()[1].exitcode)


if __name__ == "__main__":
    main()
