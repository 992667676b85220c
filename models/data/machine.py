"""Cores and memory that this training may use: its share of what the machine or the container has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from contract.environment import SIDE_BY_SIDE

if TYPE_CHECKING:
    import torch

MOST_LOADERS = 32  # a device takes no more, and each costs memory
CGROUPS = Path("/sys/fs/cgroup")


def cores(root: Path = CGROUPS) -> int:
    """Cores that this process may use: its affinity, or less if the container's quota is less."""
    number = len(os.sched_getaffinity(0))
    for folder in _groups(root):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if quota.isdecimal() and period:
            number = min(number, max(int(quota) // int(period), 1))
    return number


def sharing() -> int:
    """Processes that train on this machine and share its cores and memory with this one, itself included."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's
    import torch  # only here, as flows ask about memory without it

    told = os.environ.get(SIDE_BY_SIDE, "")
    return max(int(told), 1) * local if told.isdecimal() else max(torch.cuda.device_count(), local, 1)


def num_loaders(asked: int, device: torch.device) -> int:
    """Processes that decode photos; 0 means that threads of this process do, because its step needs the cores itself."""
    if asked or device.type == "cpu":
        return asked
    return min(max(cores() // sharing() - 1, 1), MOST_LOADERS)


def available_bytes(root: Path = CGROUPS, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Memory that the machine and every enclosing control group still have; file caches count as free."""
    free = [_number(meminfo, "MemAvailable:") * 1024]
    for folder in _groups(root):
        limit = _read(folder / "memory.max")
        if limit.isdecimal():
            used = int(_read(folder / "memory.current") or 0) - _number(folder / "memory.stat", "inactive_file")
            free.append(int(limit) - used)
    old = _read(root / "memory" / "memory.limit_in_bytes")  # control groups of version 1
    if old.isdecimal():
        used = int(_read(root / "memory" / "memory.usage_in_bytes") or 0)
        free.append(int(old) - used + _number(root / "memory" / "memory.stat", "total_inactive_file"))
    return max(min(free), 0)


def _groups(root: Path) -> Iterator[Path]:
    """Folders of this process's control group of version 2 and of those around it, as far as they can be seen."""
    own = next((line[3:] for line in _read(Path("/proc/self/cgroup")).splitlines() if line.startswith("0::")), "/")
    folder = Path(own.lstrip("/"))
    for each in (folder, *folder.parents):
        if (root / each).is_dir():
            yield root / each


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _number(file: Path, name: str) -> int:
    """Number after a name in a file of names and numbers; 0 if it is missing."""
    words = _read(file).split()
    return int(words[words.index(name) + 1]) if name in words else 0
