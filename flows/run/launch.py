"""Heavy steps as child processes, which can be ended at any time, and whose crash is an exit code instead of a dead flow."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from contract.environment import process_variables
from flows.errors import ChildFailed, DiskFull, InputError
from flows.run.live import LiveLine
from models.training.command import REFUSED

TAIL = 12  # lines of a failed child that are reported
POLL_S = 0.5
# glibc returns large blocks to the kernel at once, so every activation of a network is mapped and zeroed again.
# MobileNetV2 at 160 px, 64 photos, one core: 1.1 s per batch, 0.7 s of it in the kernel; with these 0.35 s and 0.01 s.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(8 << 30)}

_running: set[subprocess.Popen[str]] = set()


def run_child(
    module: str, arguments: Sequence[object], *, say: Callable[[str], None], workers: int = 1, title: str = ""
) -> None:
    """Runs `python -m module arguments` and passes each line that it prints to `say`, but fleeting ones to the terminal.

    The child leads a process group of its own. We end that group on any exception, also if the flow is cancelled. If we are
    killed, the pipe to the child's standard input closes and the child ends itself (flows.run.child). On a Dask worker the
    child also ends once the scheduler no longer waits for its step: the flow was cancelled or killed, perhaps elsewhere.

    Args:
        workers: number of processes that share the work (flows.run.workers).
        title: of the child's fleeting line (flows.run.live); by default the last part of the module's name.

    Raises:
        InputError: the child refused its input; its last line is the message.
        DiskFull: no space was left on the device.
        ChildFailed: it failed in any other way; the message ends with its last lines.
    """
    shared = ["flows.run.workers", str(workers)] if workers > 1 else []
    command = [sys.executable, "-m", "flows.run.child", *shared, module, *map(str, arguments)]
    live = LiveLine(title or module.rpartition(".")[2])
    variables = KEEP_MEMORY | process_variables(PYTHONUNBUFFERED="1", PYTHONWARNINGS="ignore", **live.variables)
    tail: deque[str] = deque(maxlen=TAIL)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.PIPE, text=True,
                          errors="replace", env=variables, start_new_session=True) as child:  # fmt: skip
        assert child.stdout is not None
        _running.add(child)
        if is_wanted := _wanted_by_dask():
            threading.Thread(target=_end_unwanted, args=(child, is_wanted), daemon=True).start()
        try:
            for line in child.stdout:
                if (lasting := live.take(line.rstrip())) is not None:
                    tail.append(lasting)
                    say(lasting)
            child.wait()
        except BaseException:
            _end(child)
            child.stdout.read()  # until the last worker has ended, so that none writes after us
            raise
        finally:
            _running.discard(child)
            live.end()
    if child.returncode:
        raise _failure(module, child.returncode, tail)


def end_children() -> None:
    """Ends the children of all threads; their `run_child` then raises ChildFailed."""
    for child in tuple(_running):
        _end(child)


def num_parallel(limit: int, *, workers: int = 1) -> int:
    """Trainings to run at a time, of `workers` processes each; limit: processes in all, 0 for one per GPU or CPU core."""
    return max((limit or _num_gpus() or os.cpu_count() or 1) // workers, 1)


def num_workers(wanted: int) -> int:
    """Processes of one training; wanted: `train.workers` of the recipe, 0 for one per GPU."""
    return wanted or _num_gpus() or 1


def _num_gpus() -> int:
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*"))) if Path("/proc/driver/nvidia/gpus").is_dir() else 0


def _wanted_by_dask() -> Callable[[], bool] | None:
    """A function that tells if the scheduler still wants the task of this thread; None outside a Dask worker."""
    if "distributed.worker" not in sys.modules:
        return None
    from distributed import get_worker

    try:
        worker = get_worker()
    except ValueError:
        return None
    key = worker.get_current_task()
    return lambda: key in worker.state.tasks and worker.state.tasks[key].state == "executing"


def _end_unwanted(child: subprocess.Popen[str], is_wanted: Callable[[], bool]) -> None:
    while child.poll() is None:
        if not is_wanted():
            _end(child)
            return
        time.sleep(POLL_S)


def _end(child: subprocess.Popen[str]) -> None:
    """Ends the child's process group, and its workers outside the group by closing their standard input."""
    assert child.stdin is not None
    child.stdin.close()
    with suppress(ProcessLookupError):  # it ended by itself
        os.killpg(child.pid, signal.SIGKILL)


def _failure(module: str, code: int, tail: deque[str]) -> Exception:
    last = tail[-1] if tail else ""
    if f"[Errno {errno.ENOSPC}]" in last:
        return DiskFull(
            f"no space left on the device while {module} was running; free some and run the same command again"
        )
    if code == REFUSED:
        return InputError(last)
    end = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return ChildFailed(f"{module} {end}; its last lines:\n" + "\n".join(tail))
