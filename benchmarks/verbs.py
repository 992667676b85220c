"""Time of verbs that change small things, each as a user types it: a process of its own, in a workspace of twenty photos."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from figure import figure, header
from PIL import Image

CLAIM = "a verb that changes small things answers in under two seconds, and starts no server of Prefect"
LIMIT_S = 2.0
CLASSES, PHOTOS, SIDE = 4, 5, 256  # photos of each class, px
ROOT = Path(__file__).resolve().parent.parent
START = [sys.executable, "-c", "from flows.cli import main; main()"]
VERBS = (
    ("init",),
    ("ingest", "delivery"),
    ("data", "log"),
    ("data", "show"),
    ("data", "verify"),
    ("data", "push"),
    ("feedback", "people.csv"),
    ("data", "diff", "selected"),
    ("data", "rollback", "selected"),
    ("data", "gc"),
    ("model", "log"),
)


def main() -> None:
    """Runs the command line."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--rounds", type=int, default=5, help="workspaces in which each verb runs once")
    rounds = asked.parse_args().rounds
    header(CLAIM)
    with TemporaryDirectory() as folder:
        place = Path(folder)
        deliver(place)
        seconds = [[_seconds(place, verb, shop=f"shop-{number}") for verb in VERBS] for number in range(rounds)]
    for verb, taken in zip(VERBS, zip(*seconds, strict=True), strict=True):
        median = statistics.median(taken)
        name = f"{' '.join(verb[:2])}, median of {rounds}, s"
        figure(name, round(median, 2), target=f"<= {LIMIT_S:g}", met=median <= LIMIT_S, baseline=None)


def deliver(place: Path) -> None:
    """Writes a delivery of CLASSES times PHOTOS JPEGs, and a label that a person gave."""
    random = np.random.default_rng(0)
    for label in range(CLASSES):
        (place / "delivery" / f"class {label}").mkdir(parents=True)
        for number in range(PHOTOS):
            pixels = random.integers(0, 256, (SIDE // 8, SIDE // 8, 3), np.uint8)
            photo = Image.fromarray(pixels).resize((SIDE, SIDE))
            photo.save(place / "delivery" / f"class {label}" / f"{number}.jpg")
    (place / "people.csv").write_text("path,label\nclass 0/0.jpg,class 1\n")


def _seconds(place: Path, verb: tuple[str, ...], *, shop: str) -> float:
    unset = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    started = time.monotonic()
    subprocess.run([*START, *verb, "-w", shop], cwd=place, env=unset | {"PYTHONPATH": str(ROOT)},
                   capture_output=True, check=True)  # fmt: skip
    return time.monotonic() - started


if __name__ == "__main__":
    main()
