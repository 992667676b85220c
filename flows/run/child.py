"""A module run on behalf of a flow: `python -m flows.run.child MODULE ARGUMENTS...`, with a pipe from the flow as stdin.

Nothing is ever written to that pipe. The kernel closes it when the flow ends, even when it is killed; then the child ends
together with everything that it started. An orphan would keep writing to the folder in which the next run continues.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading


def main() -> None:
    """Runs the module as `python -m` does."""
    threading.Thread(target=_end_with_flow, daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _end_with_flow() -> None:
    os.read(sys.stdin.fileno(), 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
