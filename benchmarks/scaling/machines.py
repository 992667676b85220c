"""Machines of one Dask cluster: network namespaces of this machine, joined by a bridge, with one worker each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

from distributed import Client

NET, BRIDGE, OURS = "10.97.0", "shelfbench", 254
SCHEDULER, PREFECT = 18786, 14200  # ports
START_S = 180.0
TICKS = os.sysconf("SC_CLK_TCK")


class Machines:
    """Some machines, numbered from 1, and the processes of the cluster."""

    def __init__(self, count: int, folder: Path, root: Path) -> None:
        self.names = [f"{BRIDGE}-{number}" for number in range(1, count + 1)]
        self.folder, self.root = folder, root
        self.started: list[subprocess.Popen[bytes]] = []

    @property
    def variables(self) -> dict[str, str]:
        """Environment of a flow that uses the cluster."""
        own = {
            "PYTHONPATH": str(self.root),
            "OMP_NUM_THREADS": "1",
            "PREFECT_API_URL": f"http://{NET}.{OURS}:{PREFECT}/api",
        }
        return os.environ | own | {"CLEANSHELF_DASK": f"tcp://{NET}.{OURS}:{SCHEDULER}"}

    def start(self, words: Sequence[object], *, on: str = "", name: str) -> None:
        """Starts a process of the cluster, here or on a machine; its output goes to NAME.log."""
        place = ["ip", "netns", "exec", on] if on else []
        with (self.folder / f"{name}.log").open("wb") as log:
            self.started.append(subprocess.Popen([*place, *map(str, words)], stdout=log, stderr=log, cwd=self.folder,
                                                 env=self.variables, start_new_session=True))  # fmt: skip

    def warm_up(self) -> None:
        """Lets every worker import what its first task would import."""
        with Client(f"tcp://{NET}.{OURS}:{SCHEDULER}", set_as_default=False) as client:
            client.wait_for_workers(len(self.names), timeout=START_S)
            for module in ("flows.ingest", "flows.steps.learn"):
                client.run(import_module, module)

    def busy_s(self) -> float:
        """Processor seconds that the workers and their ended children have taken."""
        pids = [pid for name in self.names for pid in ip("netns", "pids", name).split()]
        return sum(_ticks(pid) for pid in pids) / TICKS

    def end(self) -> None:
        """Kills all that was started, and removes the machines."""
        for process in self.started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for name in self.names:
            for pid in ip("netns", "pids", name, check=False).split():
                os.kill(int(pid), signal.SIGKILL)
            ip("netns", "delete", name, check=False)
        ip("link", "delete", BRIDGE, check=False)


@contextmanager
def cluster(count: int, folder: Path, root: Path) -> Iterator[Machines]:
    """A cluster on `count` machines, with a Prefect server that all reach.

    root: of the source.

    Raises:
        CalledProcessError: this kernel, or this user, may make no network namespaces.
    """
    machines = Machines(count, folder, root)
    python = sys.executable
    try:
        connect(machines.names)
        machines.start([python, "-m", "prefect", "server", "start", "--host", f"{NET}.{OURS}", "--port", PREFECT, "--no-ui"],
                       name="prefect")  # fmt: skip
        machines.start([python, "-m", "dask", "scheduler", "--host", f"{NET}.{OURS}", "--port", SCHEDULER,
                        "--no-dashboard"], name="scheduler")  # fmt: skip
        for number, name in enumerate(machines.names):
            words = [python, "-m", "dask", "worker", f"tcp://{NET}.{OURS}:{SCHEDULER}", "--nthreads", "1",
                     "--no-nanny", "--no-dashboard", "--local-directory", folder / f"dask-{number}"]  # fmt: skip
            machines.start(words, on=name, name=f"worker-{number}")
        _wait_for(f"http://{NET}.{OURS}:{PREFECT}/api/flow_runs/filter")
        machines.warm_up()
        yield machines
    finally:
        machines.end()


def connect(names: Sequence[str]) -> None:
    """Makes the machines and the bridge between them and this one."""
    ip("link", "add", BRIDGE, "type", "bridge")
    ip("addr", "add", f"{NET}.{OURS}/24", "dev", BRIDGE)
    ip("link", "set", BRIDGE, "up")
    for number, name in enumerate(names, start=1):
        ip("netns", "add", name)
        ip("link", "add", f"{BRIDGE}{number}", "type", "veth", "peer", "name", "cable", "netns", name)
        ip("link", "set", f"{BRIDGE}{number}", "master", BRIDGE, "up")
        for words in (["link", "set", "lo", "up"], ["link", "set", "cable", "up"],
                      ["addr", "add", f"{NET}.{number}/24", "dev", "cable"]):  # fmt: skip
            ip("-n", name, *words)


def ip(*words: str, check: bool = True) -> str:
    """Output of the command ip."""
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=check).stdout


def _ticks(pid: str) -> int:
    try:
        values = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except FileNotFoundError:
        return 0
    return sum(map(int, values[11:15]))  # user and system time, its own and of its children


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            with urlopen(Request(url, b'{"limit": 1}', {"Content-Type": "application/json"}), timeout=60):
                return
        except (URLError, OSError):
            time.sleep(0.5)
    raise TimeoutError(f"{url} does not answer")
