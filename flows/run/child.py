"""A module run on behalf of a flow: `python -m flows.run.child MODULE ARGUMENTS...`, standard input a pipe from the flow.

Nothing is ever written to that pipe. The kernel closes it when the flow ends, also when it is killed, and then the child
ends with all that it started. An orphan would go on writing in the folder where the next run of the stage continues.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading


def main() -> None:
    """Runs the module as `python -m` would."""
    threading.Thread(target=_end_with_flow, daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _end_with_flow() -> None:
    os.read(sys.stdin.fileno(), 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
