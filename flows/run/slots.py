"""A module run on GPUs of its own: `python -m flows.run.slots COUNT NAME=UUID,... MODULE ARGUMENTS...`.

There is one lock per GPU, and this process holds those of its GPUs while the module runs; the kernel frees them when it ends
in any way. All workspaces of a user on one machine share the locks.
"""

from __future__ import annotations

import fcntl
import os
import runpy
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from flows.run.gpus import VISIBLE
from models.training.command import REFUSED

POLL_S = 0.2


def main() -> None:
    """Waits for the GPUs, shows only them to the module, and runs it."""
    _, count, listed, *sys.argv = sys.argv
    gpus = dict(each.split("=") for each in listed.split(","))
    slots = take(gpus, int(count))  # locked until this process ends
    os.environ[VISIBLE] = ",".join(slots)
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def take(gpus: dict[str, str], count: int) -> dict[str, IO[str]]:
    """Locked files of `count` of these GPUs (name to UUID), by name, once as many are free.

    All are taken at once or none, so that trainings of several GPUs do not wait for each other.
    """
    told = False
    while len(slots := _free(gpus, count)) < count:
        for slot in slots.values():
            slot.close()
        if not told:
            print(f"waiting for {count} of {len(gpus)} GPUs, which other trainings use", flush=True)
            told = True
        time.sleep(POLL_S)
    return slots


def _free(gpus: dict[str, str], count: int) -> dict[str, IO[str]]:
    folder, slots = _folder(), dict[str, IO[str]]()
    for name, uuid in gpus.items():
        if len(slots) == count:
            break
        slot = (folder / uuid.replace("/", "-")).open("a")
        try:
            fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
            slots[name] = slot
        except BlockingIOError:
            slot.close()
    return slots


def _folder() -> Path:
    """The folder of the locks, which no other user can write to."""
    folder = Path(tempfile.gettempdir()) / f"cleanshelf-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        print(f"{folder} belongs to another user; remove it, or set TMPDIR to a folder of your own", flush=True)
        sys.exit(REFUSED)
    return folder


if __name__ == "__main__":
    main()
