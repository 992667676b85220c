"""The Triton model repository of a workspace."""

from __future__ import annotations

import re
import shutil
import subprocess

from flows.errors import InputError
from flows.settings import Settings
from flows.workspace import Workspace
from serving.repository.accelerator import Accelerator
from serving.repository.repository import ModelRepository


def repository(workspace: Workspace, settings: Settings | None = None) -> ModelRepository:
    """The model repository of a workspace, for the server that the settings (default: the environment's) describe.

    Raises:
        BadRequest, InputError: as `accelerator`.
    """
    settings = settings or Settings()
    return ModelRepository(
        workspace.repository,
        joined=settings.triton_batch or None,
        instances=settings.triton_instances or None,
        accelerator=accelerator(settings),
        latency_ms=settings.triton_latency_ms,
    )


def accelerator(settings: Settings) -> Accelerator:
    """The accelerator of the server that the settings describe.

    Raises:
        BadRequest: there is no accelerator of that name.
        InputError: TensorRT is chosen and its GPU is not known.
    """
    engines = ""
    if settings.triton_accelerator.startswith("tensorrt"):
        engines = str(settings.triton_engines / re.sub(r"[^\w.]+", "-", settings.triton_gpu or _gpu_and_driver()))
    return Accelerator(settings.triton_accelerator, settings.triton_gpu_memory_mb * 10**6, engines)


def _gpu_and_driver() -> str:
    """Name and driver version of this machine's first GPU."""
    nvidia_smi = shutil.which("nvidia-smi")
    command = [nvidia_smi or "", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    gpus = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() if nvidia_smi else ""
    if not gpus:
        raise InputError(
            "CLEANSHELF_TRITON_ACCELERATOR: a TensorRT engine fits one GPU and driver, and this machine has no GPU; "
            "set CLEANSHELF_TRITON_GPU to the output of "
            "`nvidia-smi --query-gpu=name,driver_version --format=csv,noheader` on the server"
        )
    return gpus.splitlines()[0]
