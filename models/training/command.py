"""Shared parts of the command lines of models: path options, progress logging, and the exit code for refused input."""

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

REFUSED = 65  # exit code for refused input; Python itself uses 1, and argparse 2
PATHS: Mapping[str, dict[str, Any]] = {
    "data": {"help": "folder of a materialised data version"},
    "recipe": {"help": "JSON file of a resolved recipe"},
    "network": {"help": "network.pt in the output folder of a training"},
    "networks": {"nargs": "+", "help": "network.pt of each member"},
    "ensemble": {"help": "JSON file with the weights of the members"},
    "crops": {"help": "JSON file of models.export.crops, with the number of crops and their enlargement"},
    "out": {"help": "output folder; created if missing"},
}


def parser_for(names: str, *, description: str) -> argparse.ArgumentParser:
    """Parser with required options for the PATHS of these names, such as "data recipe out"."""
    parser = argparse.ArgumentParser(description=description)
    for name in names.split():
        parser.add_argument(f"--{name}", type=Path, required=True, **PATHS[name])
    return parser


def with_features(names: str, *, description: str) -> argparse.ArgumentParser:
    """Parser as `parser_for`, with the option --features."""
    parser = parser_for(names, description=description)
    parser.add_argument(
        "--features", type=Path, help="folder of the features that trainings of a frozen backbone share"
    )
    return parser


def read_recipe(path: Path) -> Recipe:
    """Resolved recipe in a JSON file."""
    return from_dict(json.loads(path.read_text(encoding="utf-8")))


def log_progress() -> None:
    """Shows log lines of models at INFO, and those of other packages at WARNING."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in ("models", "__main__"):  # __main__ is the module that was started
        logging.getLogger(name).setLevel(logging.INFO)


def run(main: Callable[[], None]) -> None:
    """Runs a command line. If it refuses its input, prints the reason as the last line and exits with REFUSED."""
    try:
        main()
    except CleanShelfError as error:
        if not isinstance(error, ValueError):
            raise
        message = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
        sys.stdout.write(f"{message}\n")  # one write, where print makes two: several workers share the pipe
        sys.stdout.flush()
        sys.exit(REFUSED)
