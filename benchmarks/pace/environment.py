"""The environment in which trainings run, for a benchmark that measures them beside something else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import torch
from figure import unmeasured

from flows.run.launch import KEEP_MEMORY

DEVICES = ("cpu", "cuda")


def enter() -> None:
    """Starts this script again with the allocator as in trainings, unless it is set like that already."""
    if not KEEP_MEMORY.items() <= os.environ.items():
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | KEEP_MEMORY)


def on_each_device(arguments: Sequence[str], script: str, *, on_a_gpu: str) -> None:
    """Runs the script once per device that there is, with `--device NAME`; a training takes a GPU if it sees one.

    Args:
        on_a_gpu: the figures that are unmeasured without a GPU.

    Raises:
        subprocess.CalledProcessError: one of them failed.
    """
    for device in DEVICES[: 1 + torch.cuda.is_available()]:
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
        subprocess.run(
            [sys.executable, "-u", script, *arguments, "--device", device], check=True, env=os.environ | hidden
        )
    if not torch.cuda.is_available():
        unmeasured(on_a_gpu, "this machine has no GPU")
