"""What the command lines of models have in common: paths, progress on stdout, and an end that the caller can read."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from contract import CleanShelfError
from models.recipe.config import Recipe, from_dict

REFUSED = 65  # the exit code of refused input: neither Python's own 1 nor argparse's 2


PATHS: Mapping[str, dict[str, Any]] = {
    "data": {"help": "a materialised data version"},
    "recipe": {"help": "a resolved recipe, as JSON"},
    "network": {"help": "network.pt of a training, in its folder"},
    "networks": {"nargs": "+", "help": "network.pt of each member"},
    "ensemble": {"help": "JSON object with the weights of the networks"},
    "crops": {"help": "JSON object with crops and enlarge"},
    "out": {"help": "folder for what comes out"},
}


def parser_for(names: str, *, description: str) -> argparse.ArgumentParser:
    """A parser of PATHS, all required; names: such as "data recipe out"."""
    parser = argparse.ArgumentParser(description=description)
    for name in names.split():
        parser.add_argument(f"--{name}", type=Path, required=True, **PATHS[name])
    return parser


def read_recipe(path: Path) -> Recipe:
    """The resolved recipe in a JSON file."""
    return from_dict(json.loads(path.read_text(encoding="utf-8")))


def log_progress() -> None:
    """Our own lines at INFO; `__main__` is the module that was started."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in ("models", "__main__"):
        logging.getLogger(name).setLevel(logging.INFO)


def run(main: Callable[[], None]) -> None:
    """Runs a command line; input that it refuses becomes one last line and the exit code REFUSED, without a traceback."""
    try:
        main()
    except CleanShelfError as error:
        if not isinstance(error, ValueError):
            raise
        said = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
        sys.stdout.write(f"{said}\n")  # in one piece, where print makes two: several workers share the pipe
        sys.stdout.flush()
        sys.exit(REFUSED)
