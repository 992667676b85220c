"""Images handed to a server on the same machine through memory that both see, in place of through its socket."""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from tritonclient import grpc

from serving.errors import BadRequest


@dataclass(frozen=True)
class Region:
    """One batch's worth of memory, used by one request at a time.

    Its file in /dev/shm goes as soon as the server has opened it: both keep the memory, and a client that is killed
    leaves no file behind.
    """

    memory: SharedMemory
    name: str

    @classmethod
    def of(cls, num_bytes: int) -> Region:
        """New memory of that size.

        Raises:
            BadRequest: this machine has none left.
        """
        try:
            return cls(SharedMemory(create=True, size=num_bytes), f"cleanshelf-{uuid4().hex}")
        except OSError as error:
            raise BadRequest(
                f"no shared memory of {num_bytes:,} bytes ({error.strerror}); ask with transport='uint8'"
            ) from None

    @property
    def key(self) -> str:
        """Its name in /dev/shm, as the server opens it."""
        return f"/{self.memory.name.lstrip('/')}"

    def tensor_of(self, image: NDArray[np.uint8]) -> grpc.InferInput:
        """The batch (B, S, S, 3), written into this memory, as it is asked about."""
        np.ndarray(image.shape, np.uint8, buffer=self.memory.buf)[:] = image
        tensor = grpc.InferInput("image", list(image.shape), "UINT8")
        tensor.set_shared_memory(self.name, image.nbytes)
        return tensor

    def unlink(self) -> None:
        """Take its name away; those who opened it keep it."""
        self.memory.unlink()

    def close(self) -> None:
        """Give the memory back."""
        self.memory.close()
