"""Shared memory that a server needs, so that a container with too little of it is refused before anything starts.

Triton's python backend, which runs our graphs and the decoder of encoded photos, keeps a region of /dev/shm for each instance
of a model. A region grows with the requests. If it cannot grow, the request fails; at startup, the server does.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from serving.errors import BadEnvironment
from serving.repository.accelerator import CPU
from serving.repository.model_config import TritonConfig
from serving.repository.repository import ModelRepository

PLACE = Path("/dev/shm")
REGION = 1 << 20  # bytes of an instance before its first request
LOADED = 2  # versions of a model while one replaces the other
MB = 1e6


def needed_bytes(repository: ModelRepository, *, passes_bytes: bool) -> int:
    """Bytes of the regions of all instances, those of a switch included, each with the pixels of its largest batch.

    Files of encoded photos come on top: a request may bring 8 of 32 MiB.

    passes_bytes: the server runs the model for encoded photos too.

    Raises:
        CorruptVersion: the model's config.pbtxt cannot be read.
    """
    decoders = REGION * CPU.instances * passes_bytes
    if not repository.configured():
        return decoders
    config = TritonConfig.parse(repository.configuration())
    pixels = config.max_batch_size * sum(math.prod(spec.dims) for spec in config.signature.inputs)  # uint8
    return decoders + LOADED * config.instances * (REGION + pixels)


def require_shared_memory(repository: ModelRepository, *, passes_bytes: bool, place: Path = PLACE) -> None:
    """Raises BadEnvironment if this machine or container lacks shared memory for the server of a repository."""
    needed, free = needed_bytes(repository, passes_bytes=passes_bytes), shutil.disk_usage(place).free
    if needed > free:
        raise BadEnvironment(
            f"{place}: {free / MB:.0f} MB are free, and the server's models need at least {needed / MB:.0f} MB there; give the "
            "container more (docker run --shm-size=1g, or shm_size in compose.yaml), or delete what others left there"
        )
