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

from contract.environment import SIDE_BY_SIDE, process_variables
from flows.errors import ChildFailed, DiskFull, InputError
from flows.live import LiveLine
from flows.run.gpus import Gpu, require_gpus, visible_gpus
from flows.run.record import note_in_step
from models.training.command import REFUSED

TAIL = 12  # lines of a failed child that are reported
POLL_S = 0.5
GRACE_S = 20.0  # a training that is asked to end saves its checkpoint; other modules end at once
# glibc returns large blocks to the kernel at once, so every activation of a network is mapped and zeroed again.
# MobileNetV2 at 160 px, 64 photos, one core: 1.1 s per batch, 0.7 s of it in the kernel; with these 0.35 s and 0.01 s.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(8 << 30)}

_running: set[subprocess.Popen[str]] = set()
_ending = threading.Event()  # set while end_children waits: no further child starts


def run_child(
    module: str,
    arguments: Sequence[object],
    *,
    say: Callable[[str], None],
    title: str = "",
    on_gpu: bool = False,
    workers: int = 1,
    side_by_side: int = 1,
) -> None:
    """Runs `python -m module arguments` and passes each line that it prints to `say`, but fleeting ones to the terminal.

    The child leads a process group of its own. We end that group on any exception, also if the flow is cancelled. If we are
    killed, the pipe to the child's standard input closes and the child ends itself (flows.run.child). On a Dask worker the
    child also ends once the scheduler no longer waits for its step: the flow was cancelled or killed, perhaps elsewhere.

    Args:
        title: of the child's fleeting line (flows.live); by default the last part of the module's name.
        on_gpu: True if the module computes on a GPU where there is one; each of its processes then gets one of its own, and
            waits for it (flows.run.slots).
        workers: number of processes that share the work (flows.run.workers).
        side_by_side: number of such children that share the cores of this machine; they are told.

    Raises:
        InputError: the child refused its input, and its last line is the message; or there are fewer GPUs than workers.
        DiskFull: no space was left on the device.
        ChildFailed: it failed in any other way; the message ends with its last lines.
    """
    if on_gpu:
        require_gpus(workers)
    slots = _slots(visible_gpus(), workers) if on_gpu and visible_gpus() else []
    shared = ["flows.run.workers", str(workers)] if workers > 1 else []
    command = [sys.executable, "-m", "flows.run.child", *slots, *shared, module, *map(str, arguments)]
    live = LiveLine(title or module.rpartition(".")[2])
    variables = KEEP_MEMORY | process_variables(PYTHONUNBUFFERED="1", PYTHONWARNINGS="ignore", **live.variables)
    variables = {SIDE_BY_SIDE: str(side_by_side)} | variables  # the user's own number counts
    tail: deque[str] = deque(maxlen=TAIL)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.PIPE, text=True,
                          errors="replace", env=variables, start_new_session=True) as child:  # fmt: skip
        assert child.stdout is not None
        _running.add(child)
        if is_wanted := _wanted_by_dask():
            threading.Thread(target=_end_unwanted, args=(child, is_wanted), daemon=True).start()
        try:
            if _ending.is_set():
                raise ChildFailed(f"{module} did not start: the flow is ending")
            for line in child.stdout:
                if (lasting := live.take(line.rstrip())) is not None:
                    tail.append(lasting)
                    say(lasting)
            note_in_step("used", peak_bytes=_reap(child))
        except BaseException:
            _end(child)
            child.stdout.read()  # until the last worker has ended, so that none writes after us
            raise
        finally:
            _running.discard(child)
            live.end()
    if child.returncode:
        raise _failure(module, child.returncode, tail)


def _reap(child: subprocess.Popen[str]) -> int:
    """Waits for the end of the child; the largest resident memory, in bytes, of it or of any process that it started."""
    try:
        _, status, usage = os.wait4(child.pid, 0)
    except ChildProcessError:  # another thread, which ends it, was faster
        child.wait()
        return 0
    child.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss * 1024


def end_children() -> None:
    """Ends the children of all threads; their `run_child` then raises ChildFailed."""
    _ending.set()
    try:
        _end(*_running)
    finally:
        _ending.clear()


def num_parallel(limit: int, *, workers: int = 1) -> int:
    """Trainings to run at a time, of `workers` processes each: one process per GPU, or per CPU core without a GPU.

    limit: processes in all, 0 for no limit; more than one per GPU would only wait for one.
    """
    gpus = len(visible_gpus())
    processes = min(limit or gpus, gpus) or limit or os.cpu_count() or 1
    return max(processes // workers, 1)


def num_workers(wanted: int) -> int:
    """Processes of one training; wanted: `train.workers` of the recipe, 0 for one per GPU."""
    return wanted or len(visible_gpus()) or 1


def _slots(gpus: Sequence[Gpu], count: int) -> list[str]:
    return ["flows.run.slots", str(count), ",".join(f"{gpu.name}={gpu.uuid}" for gpu in gpus)]


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
            _end(child, at_once=True)  # another worker may have begun to write into the same folder
            return
        time.sleep(POLL_S)


def _end(*children: subprocess.Popen[str], at_once: bool = False) -> None:
    """Asks the children to end (SIGTERM), and kills those that have not after GRACE_S in all; or `at_once`.

    Only the child itself is asked: workers that load its photos, in the same process group, have to go on until it ends.
    The launcher passes the signal on to its workers. They are outside the group, and killed by closing their standard input.
    """
    for child in () if at_once else children:
        child.terminate()
    deadline = time.monotonic() + (0 if at_once else GRACE_S)
    try:
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(deadline - time.monotonic(), 0))
    finally:
        for child in children:
            assert child.stdin is not None
            child.stdin.close()
            with suppress(ProcessLookupError):  # all of the group ended
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
