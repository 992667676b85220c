"""Triton model that decodes encoded photos and passes them to the product model of the same server.

The stub of Triton's `python` backend runs this file, in the wheel or the container. It may import nothing of CleanShelf but
the files copied beside it: the decoder and the contract. It holds no version, so a switch of the product model does not
affect it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from contract import INPUT, OUTPUTS, PADDING
from pixels import BadPhoto, decode, to_square


class TritonPythonModel:
    """Instance of the model; Triton defines the names of the methods."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads the settings; the version to ask is determined for each request."""
        config = json.loads(args["model_config"])
        self.max_photo_bytes = int(config["parameters"]["max_photo_bytes"]["string_value"])
        self.threads = ThreadPoolExecutor(config["max_batch_size"])  # Triton never passes more requests at once
        self.decoding = Lock()  # one photo at a time: each core has an instance, and a photo may take 700 MB
        self.model = args["model_name"].removesuffix("-encoded")
        self.config = os.path.join(os.path.dirname(args["model_repository"]), self.model, "config.pbtxt")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers the requests in parallel: while one waits for the product model, others are decoded."""
        return list(self.threads.map(self._answer, requests))

    def _answer(self, request: Any) -> Any:
        try:
            return self._recognise(request)
        except Exception as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{self.model}: {error}"))

    def _recognise(self, request: Any) -> Any:
        photos = pb_utils.get_input_tensor_by_name(request, "photo").as_numpy().reshape(-1)
        served = Served.read(self.config)
        decoded = [self._decode(photo, served.size) for photo in photos]
        arrays = served.empty(len(photos))
        arrays["error"][:, 0] = [found if isinstance(found, str) else "" for found in decoded]
        good = [number for number, found in enumerate(decoded) if not isinstance(found, str)]
        if good:
            response, version = self._ask(np.stack([decoded[number] for number in good]), request)
            if response.has_error():
                return pb_utils.InferenceResponse(error=response.error())
            arrays["version"][good] = version
            for tensor in response.output_tensors():
                arrays[tensor.name()][good] = tensor.as_numpy()
        wanted = request.requested_output_names()
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, arrays[name]) for name in arrays if name in wanted])

    def _decode(self, photo: bytes, size: int) -> np.ndarray | str:
        """Pixels (size, size, 3) of the photo, or the reason why it cannot be used."""
        if len(photo) > self.max_photo_bytes:
            return f"{len(photo):,} bytes is over the limit of {self.max_photo_bytes:,}"
        try:
            with self.decoding:
                return to_square(decode(photo), size)
        except BadPhoto as error:
            return str(error)

    def _ask(self, image: np.ndarray, request: Any) -> tuple[Any, int]:
        """Response of the product model, and the version that gave it.

        The version is chosen here, because the response does not name it. If it is unloaded between the choice and the
        request, its successor is asked, because that is not the client's fault.
        """
        version = self._newest()
        response = self._ask_version(version, image, request)
        if response.has_error() and (other := self._newest()) != version:
            return self._ask_version(other, image, request), other
        return response, version

    def _newest(self) -> int:
        """Version to ask: a configured one, or, until that is loaded, the newest that is still ready."""
        for version in (*Served.read(self.config).versions, *self._present()):
            if pb_utils.is_model_ready(model_name=self.model, model_version=str(version)):
                return version
        raise ValueError("no version is ready; see the server's log")

    def _present(self) -> Iterator[int]:
        """Yields all versions in the repository, newest first."""
        names = os.listdir(os.path.dirname(self.config))
        yield from sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def _ask_version(self, version: int, image: np.ndarray, request: Any) -> Any:
        wanted = [name for name in OUTPUTS if name in request.requested_output_names()]
        question = pb_utils.InferenceRequest(
            model_name=self.model,
            model_version=version,
            requested_output_names=wanted or ["known"],
            inputs=[pb_utils.Tensor(INPUT, image)],
            timeout=request.timeout(),
            # outputs in CPU memory, also if the graph runs on a GPU
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU),
        )
        return question.exec()


@dataclass(frozen=True)
class Served:
    """Facts in the config.pbtxt of the product model: versions, newest first, and the sizes of one photo's tensors."""

    versions: tuple[int, ...]
    size: int
    k: int
    width: int

    @classmethod
    def read(cls, path: str) -> Served:
        """Facts from the text that CleanShelf writes; Triton's protobuf is not available in the container."""
        try:
            now = os.stat(path)
        except FileNotFoundError:
            raise ValueError(f"no version is served ({path} is missing); publish one") from None
        return _parsed(path, now.st_ino, now.st_mtime_ns)

    def empty(self, count: int) -> dict[str, np.ndarray]:
        """Output arrays for `count` photos without answers."""
        return {
            "ids": np.full((count, self.k), PADDING, np.int64),
            "probs": np.zeros((count, self.k), np.float32),
            "known": np.zeros((count, 1), np.float32),
            "embedding": np.zeros((count, self.width), np.float32),
            "error": np.full((count, 1), "", object),
            "version": np.zeros((count, 1), np.int64),
        }


@lru_cache(maxsize=1)
def _parsed(path: str, inode: int, time_ns: int) -> Served:
    """Facts of the file, read again only if it was replaced: its labels make it large, 2 MB for 50,000 classes."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    versions = sorted(map(int, re.findall(r"^ +versions: (\d+)$", text, re.MULTILINE)), reverse=True)
    dims = {name: int(dim) for name, dim in re.findall(r'name: "(\w+)"\s+data_type: \w+\s+dims: (\d+)', text)}
    return Served(tuple(versions), dims["image"], dims["ids"], dims["embedding"])
