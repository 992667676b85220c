"""Kills of a real process at a fault point or at a random moment, and a record of what was lost.

`python -m tests.kills TRACE FATAL MODULE ARGUMENT...` runs a module as `python -m` would. Once the module's imports are done, it
notes in the file TRACE each fault point that it passes: each fsync, each file that is named, renamed or removed, and each git
command that wrote and ended. Right after fault point number FATAL it kills its process group; 0 stands for never.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from serving.server.process import until

ROOT = Path(__file__).parents[1]
LIMIT_S = 900.0
SEED = 5
GOLDEN = (5**0.5 - 1) / 2  # multiples of it, modulo 1, cover 0 to 1 evenly however many there are
FATES = ("point", "moment")
WRITING = {
    "hash-object",
    "write-tree",
    "commit-tree",
    "update-ref",
    "tag",
    "push",
    "fetch",
}  # git commands that write to the ledger


class Outcome(NamedTuple):
    """Outcome of one process: killed or not, fault points it passed (name of the call, then paths), seconds that it took."""

    killed: bool
    passed: list[list[str]]
    span_s: float


@dataclass
class Count:
    """Counts of one operation: kills at fault points and at moments, processes that ended before their kill, failed checks."""

    operation: str
    promises: str
    seed: int = SEED
    num_points: int = 0
    point: int = 0
    moment: int = 0
    early: int = 0
    lost: int = 0

    @property
    def hits(self) -> int:
        """Kills that hit."""
        return self.point + self.moment


@dataclass(frozen=True)
class Kills:
    """Kills each operation until `wanted` kills have hit; works in `folder`, appends counts to `record` as JSON lines."""

    wanted: int
    folder: Path
    record: Path | None = None

    def strike(
        self,
        operation: str,
        *,
        promises: str,
        prepare: Callable[[Path], Sequence[object]],
        check: Callable[[Path], None],
    ) -> None:
        """Kills an operation, half of the times at fault points, half at random moments, both spread over the operation.

        Args:
            promises: the invariants that `check` asserts ("I1 to I4"), for the record.
            prepare: fills the folder that it is given; returns module and arguments of the operation on it.
            check: checks that folder after the kill; whatever it raises counts as a loss. It also runs after an
                undisturbed operation.

        Raises:
            ExceptionGroup: the errors of the checks, each with the moment of its kill.
        """
        count, errors = Count(operation, promises), []
        draw = random.Random(f"{SEED} {operation}")
        start = {fate: draw.random() for fate in FATES}
        try:
            whole = self._attempt(0, prepare, check, errors)
            count.num_points = len(whole.passed)
            for number in itertools.count(1):
                fate = FATES[number % 2]
                share = (start[fate] + number // 2 * GOLDEN) % 1
                fatal = 1 + int(share * count.num_points) if fate == "point" else 0
                after_s = share * whole.span_s if fate == "moment" else None
                killed = self._attempt(number, prepare, check, errors, fatal=fatal, after_s=after_s).killed
                where = fate if killed else "early"
                setattr(count, where, getattr(count, where) + 1)
                if count.hits >= self.wanted:
                    break
                assert number < 10 + 3 * self.wanted, (
                    "operations end before their kills: the machine is too fast for these moments"
                )
        finally:
            count.lost = len(errors)
            self._write(count)
        if errors:
            raise ExceptionGroup(f"{operation}: lost after {count.lost} of {count.hits} kills", errors)

    def _attempt(
        self,
        number: int,
        prepare: Callable[[Path], Sequence[object]],
        check: Callable[[Path], None],
        errors: list[Exception],
        **fate: Any,
    ) -> Outcome:
        folder = self.folder / str(number)
        folder.mkdir(parents=True)
        outcome = run(*prepare(folder), log=self.folder / f"{number}.log", **fate)
        try:
            check(folder)
        except Exception as error:
            error.add_note(
                f"attempt {number}, {fate}, killed: {outcome.killed}; last fault point: {outcome.passed[-1:]}"
            )
            errors.append(error)
        shutil.rmtree(folder)
        return outcome

    def _write(self, count: Count) -> None:
        if self.record is not None:
            with self.record.open("a") as file:
                file.write(json.dumps({**asdict(count), "hits": count.hits}) + "\n")


def run(*command: object, log: Path, fatal: int = 0, after_s: float | None = None) -> Outcome:
    """Runs a module with its arguments and kills it with its children: at a fault point, or `after_s` seconds after its imports.

    Raises:
        AssertionError: it failed by itself; the message has its output, which is also in `log`.
    """
    trace = log.with_suffix(".trace")
    trace.unlink(missing_ok=True)
    words = [sys.executable, "-m", "tests.kills", trace, fatal, *command]
    with log.open("wb") as file:  # not a pipe: orphans of a killed process would hold it open
        child = subprocess.Popen(
            [str(word) for word in words], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
    try:
        while not trace.exists() and child.poll() is None:
            time.sleep(0.002)
        began = time.monotonic()
        try:
            child.wait(LIMIT_S if after_s is None else after_s)
        except subprocess.TimeoutExpired:
            assert after_s is not None, f"the process hangs: {log.read_text()}"
        span_s = time.monotonic() - began
    finally:
        end(child)
    assert child.returncode in (0, -signal.SIGKILL), f"exit code {child.returncode}: {log.read_text()}"
    passed = [json.loads(line) for line in trace.read_text().splitlines()]
    return Outcome(child.returncode == -signal.SIGKILL, passed, span_s)


def end(child: subprocess.Popen[Any]) -> None:
    """Sends SIGKILL to the child's whole group, and waits until all are gone: nothing writes any more."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert until(lambda: not list(members(child.pid)), timeout_s=10.0)


def members(group: int) -> Iterator[int]:
    """The living processes of a process group."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, pgrp = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(pgrp) == group and state not in "ZX":
                yield int(folder.name)


def watch(trace: Path, *, fatal: int) -> None:
    """Notes this process's fault points in `trace` from now on, and kills it right after the one numbered `fatal`."""
    noted = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    numbers = itertools.count(1)

    def watched(call: Callable[..., Any], name: Callable[..., Sequence[Any]]) -> Callable[..., Any]:
        def passing(*args: Any, **options: Any) -> Any:
            names = name(*args)
            done = call(*args, **options)
            if names:
                os.write(noted, f"{json.dumps([call.__name__, *map(str, names)])}\n".encode())
                if next(numbers) == fatal:
                    os.killpg(0, signal.SIGKILL)
            return done

        return passing

    os.fsync = watched(os.fsync, lambda file: [os.readlink(f"/proc/self/fd/{file}")])
    for name in ("rename", "replace", "link", "unlink", "remove"):
        setattr(os, name, watched(getattr(os, name), lambda *paths: paths))
    subprocess.run = watched(subprocess.run, lambda command: command if WRITING & {*command} else [])


def main() -> None:
    """Runs the child's side."""
    trace, fatal, module = sys.argv[1:4]
    importlib.import_module(module)  # so that the trace starts with the operation, not with its imports
    sys.modules.pop(module)
    watch(Path(trace), fatal=int(fatal))
    sys.argv[:] = sys.argv[3:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
