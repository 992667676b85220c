"""An endpoint for a benchmark: a real Triton with given graphs, in a temporary folder, with its use of CPU and memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.endpoint.server import free_ports
from flows.settings import Settings
from serving.access import Access
from serving.repository.repository import ModelRepository
from serving.server.server import LocalServer

TICKS = os.sysconf("SC_CLK_TCK")
STUB = "(triton_python_b"  # the kernel keeps 15 letters of a name


@dataclass(frozen=True)
class Served:
    """A running server."""

    access: Access
    pid: int
    repository: ModelRepository

    def processes(self) -> list[int]:
        """The server and its backends: they share its session."""
        return [int(path.name) for path in Path("/proc").glob("[0-9]*") if _session(path) == self.pid]

    def stubs(self) -> list[int]:
        """The processes that run backends in Python, one for each instance of a model."""
        return [pid for pid in self.processes() if STUB in _read(Path(f"/proc/{pid}/stat"))]

    def cpu_seconds(self, *, stubs: bool | None = None) -> float:
        """Processor time that they have used so far: all of them, or only the stubs or the others."""
        backends = set(self.stubs()) if stubs is not None else set()
        return cpu_seconds(pid for pid in self.processes() if stubs is None or (pid in backends) == stubs)

    def memory_mb(self) -> float:
        """Memory of all of them; shared memory is counted once (proportional set size)."""
        return sum(_pss_kb(pid) for pid in self.processes()) / 1024


@contextmanager
def served(
    graph: Path, *, labels: list[str], golden: NDArray[np.uint8], extra: Mapping[str, Mapping[str, Path]] | None = None,
    versions: int = 1, lineage: Mapping[str, Any] | None = None, **settings: Any,
) -> Iterator[Served]:  # fmt: skip
    """Runs a server of `graph`, as versions 1 to `versions`; the last one answers.

    Args:
        extra: other models beside it: name -> files of the model's folder (config.pbtxt, 1/model.onnx).
        settings: arguments of ModelRepository.
    """
    with TemporaryDirectory() as folder:
        repository = ModelRepository(Path(folder) / "repository", **settings)
        for version in range(1, versions + 1):
            repository.write(graph, version=version, labels=labels, lineage=lineage or {}, golden=golden)
        repository.configure([versions])
        for name, files in (extra or {}).items():
            for place, source in files.items():
                target = repository.root / name / place
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
        http, grpc, metrics = free_ports(3)
        server = LocalServer(repository.root, Path(folder) / "state", Settings().triton_env,
                             http_port=http, grpc_port=grpc, metrics_port=metrics)  # fmt: skip
        running = server.start()
        try:
            yield Served(running.access, running.pid, repository)
        finally:
            server.stop()


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time that processes have used so far; one that is gone counts as none."""
    fields = (stat for pid in pids if (stat := _stat(Path(f"/proc/{pid}"))))
    return sum(int(stat[11]) + int(stat[12]) for stat in fields) / TICKS


def _stat(process: Path) -> list[str]:
    """Fields of /proc/<pid>/stat after the command; [] when the process is gone."""
    return _read(process / "stat").rpartition(")")[2].split()


def _session(process: Path) -> int:
    stat = _stat(process)
    return int(stat[3]) if stat else 0


def _pss_kb(pid: int) -> int:
    lines = _read(Path(f"/proc/{pid}/smaps_rollup")).splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def _read(path: Path) -> str:
    """Text of a file of a process; "" when the process is gone."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
