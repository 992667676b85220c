"""An endpoint for a benchmark: a real Triton with given graphs, in a temporary folder, with its use of CPU and memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
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


@dataclass(frozen=True)
class Served:
    """A running server."""

    access: Access
    pid: int
    repository: ModelRepository

    def processes(self) -> list[int]:
        """The server and its backends: they share its session."""
        return [int(path.name) for path in Path("/proc").glob("[0-9]*") if _session(path) == self.pid]

    def cpu_seconds(self) -> float:
        """Processor time that all of them have used so far."""
        fields = (stat for pid in self.processes() if (stat := _stat(Path("/proc") / str(pid))))
        return sum(int(stat[11]) + int(stat[12]) for stat in fields) / TICKS

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


def _stat(process: Path) -> list[str]:
    """Fields of /proc/<pid>/stat after the command; [] when the process is gone."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _session(process: Path) -> int:
    stat = _stat(process)
    return int(stat[3]) if stat else 0


def _pss_kb(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
