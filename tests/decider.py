"""Decides about photos until it is killed: `python -m tests.decider STATE WHO`; prints each photo's id once it is confirmed."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from pathlib import Path

from flows.review.decisions import KEEP, Decision, Decisions

THREADS = 2


def decide(decisions: Decisions, who: str, number: int) -> None:
    """Decides about one photo after the other, each of them once."""
    for each in itertools.count():
        photo = f"{int(who):08x}{number:02x}{each:06x}"
        decisions.add([Decision(photo, KEEP, "tea", who, "a" * 32)], seen=0)
        os.write(1, f"{photo}\n".encode())
        time.sleep(0.002)  # a person needs longer; without it, one thread keeps the others from the lock


def main() -> None:
    """Runs the threads."""
    decisions = Decisions(Path(sys.argv[1]))
    for number in range(THREADS):
        threading.Thread(target=decide, args=(decisions, sys.argv[2], number)).start()


if __name__ == "__main__":
    main()
