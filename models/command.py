"""What the command lines of models have in common: progress on stdout, and an end that the caller can read."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from models.errors import ModelError
from pixels import BadPhoto

REFUSED = 65  # the exit code of refused input: neither Python's own 1 nor argparse's 2


def log_progress() -> None:
    """Our own lines at INFO; `__main__` is the module that was started."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in ("models", "__main__"):
        logging.getLogger(name).setLevel(logging.INFO)


def run(main: Callable[[], None]) -> None:
    """Runs a command line; input that it refuses becomes one last line and the exit code REFUSED, without a traceback."""
    try:
        main()
    except (ModelError, BadPhoto) as error:
        if not isinstance(error, ValueError):
            raise
        said = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
        sys.stdout.write(f"{said}\n")  # in one piece, where print makes two: several workers share the pipe
        sys.stdout.flush()
        sys.exit(REFUSED)
