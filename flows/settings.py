"""Where things are: CLEANSHELF_* environment variables name places, never learning."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict

from flows.errors import DiskFull

REPOSITORY = Path(__file__).resolve().parent.parent  # the clone that CleanShelf runs from

PREFECT_BYTES = 8_000_000  # a fresh database and its log take 5.5 MB


class Settings(BaseSettings):
    """Read from the environment; every one has a working default."""

    model_config = SettingsConfigDict(env_prefix="CLEANSHELF_", frozen=True)

    workspace: Path = Path(".")
    triton_env: Path = REPOSITORY / ".venv-triton"  # the private environment of the Triton server
    parallel: int = 0  # training processes side by side; 0: one per GPU, else one per CPU core

    def num_parallel(self, *, workers: int = 1) -> int:
        """Trainings to run at a time, of so many processes each."""
        return max((self.parallel or _num_gpus() or os.cpu_count() or 1) // workers, 1)


def num_workers(wanted: int) -> int:
    """Processes of one training: train.workers of a recipe, where 0 is one per GPU."""
    return wanted or _num_gpus() or 1


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
