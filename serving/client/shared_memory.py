"""Shared memory, through which a client on the server's machine sends images instead of through a socket."""

from __future__ import annotations

import os
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from tritonclient import grpc

from serving.errors import BadRequest

PLACE = Path("/dev/shm")


@dataclass(frozen=True)
class Region:
    """Shared memory for one batch, used by one request at a time.

    The file in /dev/shm is unlinked as soon as the server has opened it. Both keep the memory, and a killed client leaves
    no file behind.
    """

    memory: SharedMemory
    name: str

    @classmethod
    def of(cls, num_bytes: int) -> Region:
        """New region of the given size, whose pages are reserved: a write to one that /dev/shm lacks ends the process.

        Raises:
            BadRequest: this machine has no shared memory left.
        """
        try:
            region = cls(SharedMemory(create=True, size=num_bytes), f"cleanshelf-{uuid4().hex}")
            try:
                region._reserve()
            except BaseException:
                region.unlink()
                region.close()
                raise
        except OSError as error:
            raise BadRequest(
                f"{num_bytes:,} bytes of shared memory are not available ({error.strerror}): free some in {PLACE}, or ask "
                "with transport='uint8'"
            ) from None
        return region

    def _reserve(self) -> None:
        descriptor = os.open(PLACE / self.memory.name.lstrip("/"), os.O_RDWR)
        try:
            os.posix_fallocate(descriptor, 0, self.memory.size)
        finally:
            os.close(descriptor)

    @property
    def key(self) -> str:
        """Name in /dev/shm under which the server opens it."""
        return f"/{self.memory.name.lstrip('/')}"

    def tensor_of(self, image: NDArray[np.uint8]) -> grpc.InferInput:
        """Input tensor of a batch (B, S, S, 3), after copying the batch into this memory."""
        np.ndarray(image.shape, np.uint8, buffer=self.memory.buf)[:] = image
        tensor = grpc.InferInput("image", list(image.shape), "UINT8")
        tensor.set_shared_memory(self.name, image.nbytes)
        return tensor

    def unlink(self) -> None:
        """Removes the file; processes that opened the memory keep it."""
        self.memory.unlink()

    def close(self) -> None:
        """Releases the memory of this process."""
        self.memory.close()
