"""GPUs of this machine that torch can use, as CUDA_VISIBLE_DEVICES and the container show them.

CUDA itself is asked in a process of its own, `python -m flows.run.gpus`: no flow imports torch or opens a GPU.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from contract.environment import process_variables
from flows.errors import InputError, WorldError

VISIBLE = "CUDA_VISIBLE_DEVICES"
DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"))  # of Linux, and of Windows' subsystem for Linux
ANSWER_TIMEOUT_S = 60.0  # a driver that loads its first GPU takes seconds


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a MIG device."""

    name: str  # in CUDA_VISIBLE_DEVICES: an index, GPU-<uuid> or MIG-<uuid>
    uuid: str
    model: str


@functools.cache
def visible_gpus() -> tuple[Gpu, ...]:
    """The GPUs that torch can use here, in CUDA's order; none without a driver.

    Raises:
        WorldError: the driver does not answer.
    """
    value = os.environ.get(VISIBLE)
    return gpus_by_name(value, _usable()) if value != "" and has_driver() else ()


def has_driver() -> bool:
    """True if a driver of NVIDIA is loaded, and shown to this container."""
    return any(driver.exists() for driver in DRIVERS)


def gpus_by_name(value: str | None, usable: list[tuple[str, str]]) -> tuple[Gpu, ...]:
    """The usable GPUs with their names in CUDA_VISIBLE_DEVICES.

    Args:
        value: the variable; None if it is not set.
        usable: UUID and model of each GPU that CUDA finds. CUDA takes the names up to the first that is wrong, and of
            several MIG devices the first; a process that is given another one takes that.
    """
    names = [each.strip() for each in value.split(",")] if value is not None else list(map(str, range(len(usable))))
    if usable and names[0].startswith("MIG-"):
        model = usable[0][1]
        return tuple(Gpu(name, name, model) for name in takewhile(lambda name: name.startswith("MIG-"), names))
    return tuple(Gpu(name, *found) for name, found in zip(names, usable, strict=False))


def require_gpus(count: int) -> None:
    """Raises InputError if GPUs are visible, but fewer than the `count` processes of one training."""
    if 0 < len(visible_gpus()) < count:
        raise InputError(
            f"train.workers: {count} processes need a GPU each, but this machine shows {len(visible_gpus())}; "
            "set train.workers=0 for one process per GPU"
        )


def _usable() -> list[tuple[str, str]]:
    command = [sys.executable, "-m", "flows.run.gpus"]
    try:
        asked = subprocess.run(command, env=process_variables(), capture_output=True, text=True, check=True,
                               timeout=ANSWER_TIMEOUT_S)  # fmt: skip
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        last = (str(error.stderr or "").strip() or str(error)).splitlines()[-1]
        raise WorldError(
            f"the driver of the GPUs does not answer ({last}); repair it, or train on the CPU with {VISIBLE}="
        ) from None
    return [(uuid, model) for uuid, model in json.loads(asked.stdout)]


def main() -> None:
    """Prints UUID and model of each GPU that torch can use, as JSON."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = [torch.cuda.get_device_properties(number) for number in range(count)]
    print(json.dumps([(str(each.uuid), each.name) for each in found]))


if __name__ == "__main__":
    main()
