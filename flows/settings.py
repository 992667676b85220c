"""Settings of a machine, read from CLEANSHELF_* environment variables. None of them changes what is learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from flows.errors import InputError

REPOSITORY = Path(__file__).resolve().parent.parent  # the clone that CleanShelf runs from

LOCAL = "local"  # value of CLEANSHELF_DASK for processes on this machine
INSTALL_DASK = "run `.venv/bin/pip install -c constraints.txt -e '.[dask]'`"
INSTALL_MAP = "run `.venv/bin/pip install -c constraints.txt -e '.[map]'`"


class Settings(BaseSettings):
    """The environment variables, each with a working default; CLEANSHELF_TRITON_URL sets `triton_url`, and so on."""

    model_config = SettingsConfigDict(env_prefix="CLEANSHELF_", frozen=True)

    workspace: Path = Path(".")
    triton_env: Path = REPOSITORY / ".venv-triton"  # private Python environment of the Triton server
    triton_url: str = ""  # gRPC address of an external server, host:port or grpcs://host:port; "" for our own server
    triton_token: str = ""  # token for inference on the external server
    triton_control_token: str = ""  # token for loading models there
    triton_ca: Path | None = None  # PEM file of the CA that signed its certificate; None for the system's CAs
    # execution provider of the server: cpu, cuda, tensorrt-fp16, ... (serving/repository/accelerator.py)
    triton_accelerator: str = "cpu"
    triton_gpu: str = ""  # GPU and driver that TensorRT engines are built for; "" to ask nvidia-smi on this machine
    triton_gpu_memory_mb: int = 0  # GPU memory limit of ONNX Runtime in MB; 0 for no limit
    triton_engines: Path = Path("/var/cache/cleanshelf")  # folder of TensorRT engines on the server
    triton_latency_ms: float = Field(50, gt=0)  # longest wait for an answer under load, for which batches are chosen
    triton_batch: int = Field(0, ge=0, le=4096)  # photos computed together at most; 0 to choose by the measured curve
    triton_instances: int = Field(0, ge=0)  # copies of the graph on the server; 0: docs/tasks/serve.md has the rule
    parallel: int = 0  # training processes at a time; 0 for one per GPU, or one per CPU core without a GPU
    dask: str = ""  # where they run: address of a Dask scheduler, "local" for processes on this machine, "" for threads

    def __init__(self, **values: Any) -> None:
        """Reads the environment.

        Raises:
            InputError: a variable has a value that is not allowed; the message names the first one.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = f"CLEANSHELF_{'_'.join(map(str, first['loc'])).upper()}"
            raise InputError(f"{name}={first['input']}: {first['msg'].lower()}; correct or unset it") from None
