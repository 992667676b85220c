"""Commands and what they take: seconds, processor time, memory of their largest process and bytes written, as /proc shows them."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

EVERY_S = 0.2
PROC = Path("/proc")


@dataclass
class Taken:
    """Cost of one stage.

    Attributes:
        seconds: time on the clock; other work on the machine makes it longer.
        processor_s: processor time of all processes; other work hardly changes it.
        peak_bytes: largest resident memory of any process.
        written_bytes: written to the disk.
    """

    seconds: float = 0.0
    processor_s: float = 0.0
    peak_bytes: int = 0
    written_bytes: int = 0


def merged(taken: Mapping[str, Taken]) -> dict[str, Taken]:
    """Costs with one entry for all members, or folds, of a step: side by side, what runs when is credited to the last started."""
    found: dict[str, Taken] = {}
    for name, each in taken.items():
        whole = found.setdefault(re.sub(r" \d+$", "", name), Taken())
        whole.seconds += each.seconds
        whole.processor_s += each.processor_s
        whole.peak_bytes = max(whole.peak_bytes, each.peak_bytes)
        whole.written_bytes += each.written_bytes
    return found


@dataclass
class Watch:
    """Cost of a command per stage, sampled from outside; `stage` names the stage that runs now."""

    stage: Callable[[], str]
    taken: dict[str, Taken] = field(default_factory=dict)

    def run(self, command: Sequence[str], *, log: Path, variables: Mapping[str, str]) -> int:
        """Runs the command, with its output in a file; returns its exit code."""
        with log.open("ab") as out:
            child = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=dict(variables))
        ended = threading.Event()
        sampler = threading.Thread(target=self._sample, args=(child.pid, ended))
        sampler.start()
        code = child.wait()
        ended.set()
        sampler.join()
        return code

    def _sample(self, root: int, ended: threading.Event) -> None:
        before, written, seen = time.monotonic(), 0, dict[int, str]()
        used = dict[int, float]()
        while not ended.wait(EVERY_S):
            stage, now = self.stage(), time.monotonic()
            part = self.taken.setdefault(stage, Taken())
            family = _family(root)
            for pid in family:
                first = seen.setdefault(pid, stage)  # the peak of a process that a stage started is that of the stage
                part.peak_bytes = max(part.peak_bytes, _memory(pid, peak=first == stage))
            total = sum(_written(pid) for pid in family)
            part.written_bytes += max(total - written, 0)
            for pid in family:
                now_used = _processor_s(pid)
                part.processor_s += max(now_used - used.get(pid, 0.0), 0)
                used[pid] = now_used
            part.seconds += now - before
            before, written = now, max(total, written)


def _family(root: int) -> list[int]:
    """The process and all that it started and that still run."""
    parents = dict[int, int]()
    for entry in PROC.iterdir():
        if entry.name.isdecimal():
            with suppress(OSError, IndexError, ValueError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found, waiting = list[int](), [root]
    while waiting:
        found.append(waiting.pop())
        waiting += [pid for pid, parent in parents.items() if parent == found[-1]]
    return found


def _memory(pid: int, *, peak: bool) -> int:
    """Resident bytes of a process that are its own, now or at their peak; 0 once it ended."""
    name = "VmHWM:" if peak else "VmRSS:"
    with suppress(OSError):
        for line in (PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0


def _processor_s(pid: int) -> float:
    """Processor time of a process, without its children; 0 once it ended."""
    with suppress(OSError, IndexError, ValueError):
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _written(pid: int) -> int:
    """Bytes that a process, and the children whose end it has seen, caused to be written; 0 once it ended."""
    with suppress(OSError):
        for line in (PROC / str(pid) / "io").read_text().splitlines():
            if line.startswith("write_bytes:"):
                return int(line.split()[1])
    return 0
