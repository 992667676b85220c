"""Protocol between a recogniser and a server: the calls, their order, and the handling of answers.

Written once for sync and async clients, as conversations (serving.client.conversation).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from tritonclient import grpc

from contract import REQUEST_PHOTOS, encoded_name
from pixels import BadPhoto
from serving.client.batches import Answered, Numbered, prepared
from serving.client.conversation import Call, Pause, Steps, T
from serving.client.photos import encoded, square
from serving.client.recognition import Recognition, outputs, recognitions
from serving.client.retry import Retry
from serving.client.shared_memory import Region
from serving.errors import (
    BadRequest,
    BatchTooLarge,
    Forbidden,
    ModelNotReady,
    ServerUnavailable,
    ServingError,
    VersionNotFound,
)
from serving.wire import Answer, answer, question, tensor_of, tensor_of_files, texts

log = logging.getLogger(__name__)
Transport = Literal["uint8", "encoded", "shared memory"]
IN_USE = "currently in use"  # a request keeps its memory for a moment after it is answered
LOST = "unable to find shared memory region"  # the server was restarted
REFUSALS = (BadRequest, Forbidden, ModelNotReady)  # no such memory there, no token for it, or switched off


@dataclass(frozen=True)
class Served:
    """Facts for clients in the configuration of a served model."""

    size: int  # side of the square input in pixels
    batch: int  # photos of a request: as many as the server computes together
    parameters: dict[str, str]


@dataclass(frozen=True)
class Asked:
    """Names of the requested outputs, and the priority of the request."""

    outputs: list[str]
    priority: int


@dataclass
class Session:
    """Conversations with one model at one server, and the facts learnt from them.

    Args:
        labels: returns the labels of a version; None: the server provides them.
    """

    url: str
    model: str
    transport: Transport
    timeout_s: float
    patience_s: float
    labels: Callable[[int], Sequence[str]] | None
    served: Served | None = None
    _versions: dict[int, tuple[Sequence[str], str]] = field(default_factory=dict)  # labels, data version
    _region_bytes: int = 0
    _regions: list[Region] = field(default_factory=list)  # not used by a request now

    def __post_init__(self) -> None:
        if self.transport not in get_args(Transport):
            raise BadRequest(f"transport {self.transport!r} is unknown; use one of {', '.join(get_args(Transport))}")

    def learn(self) -> Steps[Served]:
        """Facts needed before the first photo is sent; requested once."""
        if self.served is None:
            self.served = yield from self._again(lambda left_s: self._read_config("", left_s))
            self._region_bytes = self.served.batch * self.served.size**2 * 3  # no later batch is larger
        return self.served

    def prepare(self, batch: Numbered) -> list[Any]:
        """Each photo in the form that the transport carries, or its BadPhoto. Call `learn` first."""
        assert self.served is not None
        make = encoded if self.transport == "encoded" else square
        return prepared(batch, make, size=self.served.size)

    def ask(
        self, photos: Sequence[NDArray[np.uint8] | bytes], *, embedding: bool, priority: int
    ) -> Steps[list[Answered]]:
        """One answer for each square, or for each encoded photo with that transport.

        They fit in one request, unless the model was switched to a version that takes fewer photos at once.
        """
        asked, answers = Asked(outputs(embedding), priority), list[Answered]()
        while rest := photos[len(answers) :]:
            batch = rest[: (yield from self.learn()).batch]
            try:
                answers += yield from self._again(partial(self._ask_once, batch, asked))
            except BatchTooLarge:
                self.served = yield from self._again(lambda left_s: self._read_config("", left_s))
                if self.served.batch >= len(batch):
                    raise
        return answers

    def end(self) -> Steps[None]:
        """Unregisters the shared memory of this client; errors of a server that is gone are ignored."""
        while self._regions:
            region = self._regions.pop()
            try:
                yield from self._unregister(region)
            except ServingError:
                pass
            finally:
                region.close()

    def _again(self, attempt: Callable[[float], Steps[T]]) -> Steps[T]:
        """Result of the first successful attempt; each attempt gets the seconds left."""
        retry = Retry(self.timeout_s, self.patience_s)
        while True:
            try:
                return (yield from attempt(retry.left_s()))
            except ServingError as error:
                if isinstance(
                    error, ServerUnavailable
                ):  # a restarted server may have other models under the same numbers
                    self._versions.clear()
                yield Pause(retry.pause_s(error))

    def _ask_once(
        self, photos: Sequence[NDArray[np.uint8] | bytes], asked: Asked, left_s: float
    ) -> Steps[list[Answered]]:
        if self.transport == "encoded":
            return (yield from self._ask_encoded(cast("Sequence[bytes]", photos), asked, left_s))
        images = np.stack(photos)
        ask = self._ask_shared if self.transport == "shared memory" else self._ask_uint8
        found = yield from ask(images, asked, left_s)
        return [*(yield from self._recognitions(found.arrays, found.version, left_s))]

    def _ask_uint8(self, images: NDArray[np.uint8], asked: Asked, left_s: float) -> Steps[Answer]:
        return (yield from self._infer(tensor_of(images), self.model, asked, left_s))

    def _ask_shared(self, images: NDArray[np.uint8], asked: Asked, left_s: float) -> Steps[Answer]:
        try:
            region: Region | None = self._regions.pop()
        except IndexError:
            region = yield from self._register(left_s)
        if region is None:
            return (yield from self._ask_uint8(images, asked, left_s))
        is_lost = False
        try:
            return (yield from self._infer(region.tensor_of(images), self.model, asked, left_s))
        except ServingError as error:
            is_lost = LOST in str(error).lower()
            if is_lost:
                raise ServerUnavailable(
                    f"{self.url} was restarted and lost its shared memory; send the request again"
                ) from None
            raise
        finally:
            if is_lost:
                region.close()
            else:
                self._regions.append(region)

    def _ask_encoded(self, photos: Sequence[bytes], asked: Asked, left_s: float) -> Steps[list[Answered]]:
        """One answer per photo; a photo that cannot be decoded does not affect the others."""
        names = Asked([*asked.outputs, "error", "version"], asked.priority)
        reply = yield from self._infer(tensor_of_files(photos), encoded_name(self.model), names, left_s)
        found: list[Answered] = [BadPhoto(fault) for fault in texts(reply.arrays["error"]).flat]
        versions = reply.arrays["version"][:, 0]
        for version in sorted({int(v) for v in versions} - {0}):
            rows = np.flatnonzero(versions == version)
            arrays = {name: reply.arrays[name][rows] for name in asked.outputs}
            for row, recognition in zip(rows, (yield from self._recognitions(arrays, version, left_s)), strict=True):
                found[row] = recognition
        return found

    def _infer(self, tensor: grpc.InferInput, model: str, asked: Asked, left_s: float) -> Steps[Answer]:
        arguments = question(tensor, model=model, outputs=asked.outputs, timeout_s=left_s, priority=asked.priority)
        return answer((yield Call("infer", arguments)), asked.outputs)

    def _recognitions(self, arrays: dict[str, NDArray[Any]], version: int, left_s: float) -> Steps[list[Recognition]]:
        known = self._versions.get(version)
        labels, data_version = known or (yield from self._learn_version(version, left_s))
        if arrays["ids"].max(initial=0) >= len(labels):
            raise BadRequest(
                f"{self.url}: version {version} has more classes than the {len(labels)} labels passed; pass its own labels"
            )
        return recognitions(arrays, labels=labels, model_version=version, data_version=data_version)

    def _learn_version(self, version: int, left_s: float) -> Steps[tuple[Sequence[str], str]]:
        """Labels and data version of a model version, from its configuration."""
        try:
            parameters = (yield from self._read_config(str(version), left_s)).parameters
        except ModelNotReady as error:
            raise VersionNotFound(
                f"{self.url}: version {version} answered but is no longer loaded ({error}); ask again"
            ) from None
        listed = parameters.get(f"labels.{version}", "null")
        labels = self.labels(version) if self.labels else _list(listed)
        if labels is None:
            raise BadRequest(f"{self.url} does not provide the labels of version {version}; pass `labels` yourself")
        learnt = labels, parameters.get(f"data_version.{version}", "")
        self._versions[version] = learnt
        return learnt

    def _read_config(self, version: str, left_s: float) -> Steps[Served]:
        reply = yield Call(
            "get_model_config", {"model_name": self.model, "model_version": version, "client_timeout": left_s}
        )
        config = reply.config
        image = next((list(tensor.dims) for tensor in config.input if tensor.name == "image"), [])
        if len(image) != 3 or image != [image[0], image[0], 3] or not config.max_batch_size:
            raise BadRequest(
                f"{self.url}: model {self.model} does not take batches of square images; name another model"
            )
        batch = max(config.dynamic_batching.preferred_batch_size, default=config.max_batch_size)
        if self.transport == "encoded":
            batch = min(batch, REQUEST_PHOTOS)
        return Served(image[0], batch, {key: value.string_value for key, value in config.parameters.items()})

    def _register(self, left_s: float) -> Steps[Region | None]:
        """New memory that the server opened; None if it refuses, and then all further photos travel as uint8."""
        region = Region.of(self._region_bytes)
        arguments = {
            "name": region.name, "key": region.key, "byte_size": self._region_bytes, "client_timeout": left_s
        }  # fmt: skip
        try:
            yield Call("register_system_shared_memory", arguments)
        except BaseException as error:
            region.close()
            if not isinstance(error, REFUSALS):
                raise
            self._give_up_shared_memory(error)
            return None
        finally:
            region.unlink()
        return region

    def _give_up_shared_memory(self, error: ServingError) -> None:
        if self.transport == "shared memory":  # another thread may have said so already
            self.transport = "uint8"
            log.warning("the server refuses shared memory, so photos travel as uint8: %s", error)

    def _unregister(self, region: Region) -> Steps[None]:
        for _ in range(20):
            try:
                arguments = {"name": region.name, "client_timeout": self.timeout_s}
                yield Call("unregister_system_shared_memory", arguments)
                return
            except ServingError as error:
                if IN_USE not in str(error):
                    raise
            yield Pause(0.05)


def _list(text: str) -> list[str] | None:
    """Names in a JSON list; None if the text is not a JSON list of strings."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, list) and all(isinstance(name, str) for name in found) else None
