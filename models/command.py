"""What the command lines of models have in common: progress on stdout, and nothing from other libraries below a warning."""

from __future__ import annotations

import logging


def log_progress() -> None:
    """Our own lines at INFO; `__main__` is the module that was started."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in ("models", "__main__"):
        logging.getLogger(name).setLevel(logging.INFO)
