"""Where things are: CLEANSHELF_* environment variables name places, never learning."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict

from flows.errors import DiskFull, InputError
from serving.access import Access
from serving.repository.accelerator import Accelerator

REPOSITORY = Path(__file__).resolve().parent.parent  # the clone that CleanShelf runs from

INSTALL_DASK = "run `.venv/bin/pip install -c constraints.txt -e '.[dask]'`"
PREFECT_BYTES = 8_000_000  # a fresh database and its log take 5.5 MB


class Settings(BaseSettings):
    """Read from the environment; every one has a working default."""

    model_config = SettingsConfigDict(env_prefix="CLEANSHELF_", frozen=True)

    workspace: Path = Path(".")
    triton_env: Path = REPOSITORY / ".venv-triton"  # the private environment of the Triton server
    triton_url: str = ""  # gRPC of a server that somebody else runs: host:port, or grpcs://host:port; "": our own
    triton_token: str = ""  # its token for inference
    triton_control_token: str = ""  # and the one for loading models
    triton_ca: Path | None = None  # PEM file of the authority of its certificate; none: those of the system
    triton_accelerator: str = (
        "cpu"  # what computes there: cpu, cuda, tensorrt-fp16, ... (serving/repository/accelerator.py)
    )
    triton_gpu: str = ""  # its GPU and driver, which TensorRT's engines hold for; "": what nvidia-smi says here
    triton_gpu_memory_mb: int = 0  # for ONNX Runtime on the GPU; 0: as much as it needs
    triton_engines: Path = Path("/var/cache/cleanshelf")  # where TensorRT keeps engines on the server
    triton_instances: int = 0  # copies of the graph on the server's CPU; 0: one for each core of this machine
    parallel: int = 0  # training processes side by side; 0: one per GPU, else one per CPU core
    dask: str = ""  # where they run: a Dask scheduler's address, or "local" for processes of this machine; "": threads

    def remote(self) -> Access | None:
        """The way to the server that somebody else runs, if one is named.

        Raises:
            BadRequest: an authority without TLS, or one that is no file.
        """
        if not self.triton_url:
            return None
        return Access(self.triton_url, self.triton_token, self.triton_control_token, self.triton_ca)

    def accelerator(self) -> Accelerator:
        """What computes on the server.

        Raises:
            BadRequest: no such accelerator.
            InputError: TensorRT, and nobody says for which GPU.
        """
        engines = ""
        if self.triton_accelerator.startswith("tensorrt"):
            engines = str(self.triton_engines / re.sub(r"[^\w.]+", "-", self.triton_gpu or _gpu_and_driver()))
        return Accelerator(self.triton_accelerator, self.triton_gpu_memory_mb * 10**6, engines)

    def num_parallel(self, *, workers: int = 1) -> int:
        """Trainings to run at a time, of so many processes each."""
        return max((self.parallel or _num_gpus() or os.cpu_count() or 1) // workers, 1)


def num_workers(wanted: int) -> int:
    """Processes of one training: train.workers of a recipe, where 0 is one per GPU."""
    return wanted or _num_gpus() or 1


def _gpu_and_driver() -> str:
    tool = shutil.which("nvidia-smi")
    asked = [tool or "", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() if tool else ""
    if not found:
        raise InputError(
            "CLEANSHELF_TRITON_ACCELERATOR: TensorRT's engines hold for one GPU and driver, and this machine has none; set "
            "CLEANSHELF_TRITON_GPU to what `nvidia-smi --query-gpu=name,driver_version --format=csv,noheader` says there"
        )
    return found.splitlines()[0]


def _num_gpus() -> int:
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*"))) if Path("/proc/driver/nvidia/gpus").is_dir() else 0


def prepare_prefect(state: Path) -> None:
    """Environment for Prefect; must be called before it is imported.

    Its home lies in the workspace, nothing is sent anywhere, and the start of the local server may take long: 9 to 25 s were
    measured on two busy cores, over Prefect's own limit of 20 s.

    Raises:
        DiskFull: its server could not write its database, and would only say so after that time.
    """
    free = shutil.disk_usage(state).free
    if free < PREFECT_BYTES:
        raise DiskFull(
            f"{state}: {free / 1e6:.0f} MB are free, {PREFECT_BYTES / 1e6:.0f} are needed; free some space and run it again"
        )
    os.environ |= {
        "PREFECT_HOME": str(state / "prefect"),
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
        "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_LEVEL": "CRITICAL",  # what fails is told once, by us, without Prefect's traceback
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "cleanshelf",
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(state / "prefect" / "results"),
    }
