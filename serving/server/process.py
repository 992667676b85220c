"""Processes that outlive their parent: starting, identifying and ending them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path


def spawn(command: list[str], *, variables: Mapping[str, str], log: Path, folder: Path | None = None) -> int:
    """Starts a process in its own session, without inherited descriptors; output goes to `log`. Returns the pid.

    folder: its current folder; None for ours.
    """
    if folder:
        command = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', str(folder), *command]
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
        *((os.POSIX_SPAWN_CLOSE, number) for number in _inheritable()),
    ]
    return os.posix_spawn(command[0], command, variables, file_actions=actions, setsid=True)


def birth(pid: int) -> str | None:
    """Boot id and start time of the process, which tell a reused pid apart; None if the process is gone."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # reaps it if it is our child and has ended
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"


def end(pid: int, *, born: str, grace_s: float) -> None:
    """Sends SIGTERM to the process; after `grace_s` kills its whole group."""
    if birth(pid) != born:
        return
    os.kill(pid, signal.SIGTERM)
    if not until(lambda: birth(pid) != born, timeout_s=grace_s):
        kill([pid], group=True)


def kill(pids: Sequence[int], *, group: bool = False) -> None:
    """Sends SIGKILL to the processes and waits until they are gone."""
    for pid in pids:
        try:
            (os.killpg if group else os.kill)(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    until(lambda: all(birth(pid) is None for pid in pids), timeout_s=10.0)


def until(condition: Callable[[], bool], *, timeout_s: float) -> bool:
    """True if the condition became true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def commands() -> Iterator[tuple[int, list[str]]]:
    """Yields pid and argv of every process that this user may read and that sees the same files, hence the same paths."""
    files = os.readlink("/proc/self/ns/mnt")
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(folder / "ns" / "mnt") != files:
                continue
            yield int(folder.name), (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except (OSError, ProcessLookupError):
            continue


def _inheritable() -> list[int]:
    """Descriptors that a child would inherit from us, such as the pipe of a waiting caller."""
    found = []
    for number in (int(name) for name in os.listdir("/proc/self/fd")):
        with suppress(OSError):  # the listing's own descriptor is closed by now
            if number > 2 and os.get_inheritable(number):
                found.append(number)
    return found
