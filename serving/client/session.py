"""How a recogniser talks with a server: which calls, in which order, and what follows from the answers.

Written once for both kinds of client, as conversations (serving.client.conversation).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from tritonclient import grpc

from contract import encoded_name
from pixels import BadPhoto
from serving.client.batches import Answered, Numbered, prepared
from serving.client.conversation import Call, Pause, Steps, T
from serving.client.photos import encoded, square
from serving.client.recognition import Recognition, outputs, recognitions
from serving.client.retry import Retry
from serving.client.shared_memory import Region
from serving.errors import BadRequest, ModelNotReady, ServerUnavailable, ServingError, VersionNotFound
from serving.wire import Answer, answer, question, tensor_of, tensor_of_files, texts

Transport = Literal["uint8", "encoded", "shared memory"]
IN_USE = "currently in use"  # a request that has just been answered holds its memory a moment longer
LOST = "unable to find shared memory region"  # the server was started anew


@dataclass(frozen=True)
class Served:
    """What the configuration of a served model says to its clients."""

    size: int  # side of the square input, in pixels
    batch: int  # largest request, in photos
    parameters: dict[str, str]


@dataclass
class Session:
    """The conversations with one model at one server, and what is remembered of it.

    Args:
        labels: the labels of a version; None: as the server tells them.
    """

    url: str
    model: str
    transport: Transport
    timeout_s: float
    patience_s: float
    labels: Callable[[int], Sequence[str]] | None
    served: Served | None = None
    _versions: dict[int, tuple[Sequence[str], str]] = field(default_factory=dict)  # labels, data version
    _regions: list[Region] = field(default_factory=list)  # those that no request uses now

    def __post_init__(self) -> None:
        if self.transport not in get_args(Transport):
            raise BadRequest(f"transport {self.transport!r} is unknown; use one of {', '.join(get_args(Transport))}")

    def learn(self) -> Steps[Served]:
        """What has to be known before the first photo is sent; asked once."""
        if self.served is None:
            self.served = yield from self._again(lambda left_s: self._read_config("", left_s))
        return self.served

    def prepare(self, batch: Numbered) -> list[Any]:
        """Each photo in the form that the transport carries, or its BadPhoto. Call `learn` first."""
        assert self.served is not None
        make = encoded if self.transport == "encoded" else square
        return prepared(batch, make, size=self.served.size)

    def ask(self, photos: Sequence[NDArray[np.uint8] | bytes], *, embedding: bool) -> Steps[list[Answered]]:
        """An answer for each square (or encoded photo, by that transport); at most one batch of them."""
        return (yield from self._again(lambda left_s: self._ask_once(photos, embedding, left_s)))

    def end(self) -> Steps[None]:
        """Give back what the server holds for this client. A server that is gone holds nothing."""
        while self._regions:
            region = self._regions.pop()
            try:
                yield from self._unregister(region)
            except ServingError:
                pass
            finally:
                region.close()

    def _again(self, attempt: Callable[[float], Steps[T]]) -> Steps[T]:
        """The outcome of the first attempt that succeeds, each told how many seconds are left."""
        retry = Retry(self.timeout_s, self.patience_s)
        while True:
            try:
                return (yield from attempt(retry.left_s()))
            except ServingError as error:
                if isinstance(error, ServerUnavailable):  # what comes back may hold other models under the same numbers
                    self._versions.clear()
                yield Pause(retry.pause_s(error))

    def _ask_once(
        self, photos: Sequence[NDArray[np.uint8] | bytes], embedding: bool, left_s: float
    ) -> Steps[list[Answered]]:
        wanted = outputs(embedding)
        if self.transport == "encoded":
            return (yield from self._ask_encoded(cast("Sequence[bytes]", photos), wanted, left_s))
        images = np.stack(photos)
        ask = self._ask_shared if self.transport == "shared memory" else self._ask_uint8
        said = yield from ask(images, wanted, left_s)
        return [*(yield from self._recognitions(said.arrays, said.version, left_s))]

    def _ask_uint8(self, images: NDArray[np.uint8], wanted: list[str], left_s: float) -> Steps[Answer]:
        return (yield from self._infer(tensor_of(images), self.model, wanted, left_s))

    def _ask_shared(self, images: NDArray[np.uint8], wanted: list[str], left_s: float) -> Steps[Answer]:
        try:
            region = self._regions.pop()
        except IndexError:
            region = yield from self._register(left_s)
        is_lost = False
        try:
            return (yield from self._infer(region.tensor_of(images), self.model, wanted, left_s))
        except ServingError as error:
            is_lost = LOST in str(error).lower()
            if is_lost:
                raise ServerUnavailable(
                    f"{self.url} was started anew and lost its shared memory; send it again"
                ) from None
            raise
        finally:
            if is_lost:
                region.close()
            else:
                self._regions.append(region)

    def _ask_encoded(self, photos: Sequence[bytes], wanted: list[str], left_s: float) -> Steps[list[Answered]]:
        """Each photo is judged for itself: one that cannot be decoded does not harm the others."""
        names = [*wanted, "error", "version"]
        said = yield from self._infer(tensor_of_files(photos), encoded_name(self.model), names, left_s)
        found: list[Answered] = [BadPhoto(fault) for fault in texts(said.arrays["error"]).flat]
        versions = said.arrays["version"][:, 0]
        for version in sorted({int(v) for v in versions} - {0}):
            rows = np.flatnonzero(versions == version)
            arrays = {name: said.arrays[name][rows] for name in wanted}
            for row, recognition in zip(rows, (yield from self._recognitions(arrays, version, left_s)), strict=True):
                found[row] = recognition
        return found

    def _infer(self, tensor: grpc.InferInput, model: str, wanted: list[str], left_s: float) -> Steps[Answer]:
        result = yield Call("infer", question(tensor, model=model, outputs=wanted, timeout_s=left_s))
        return answer(result, wanted)

    def _recognitions(self, arrays: dict[str, NDArray], version: int, left_s: float) -> Steps[list[Recognition]]:
        known = self._versions.get(version)
        labels, data_version = known or (yield from self._learn_version(version, left_s))
        if arrays["ids"].max(initial=0) >= len(labels):
            raise BadRequest(
                f"{self.url}: version {version} answers more classes than the {len(labels)} labels given it"
            )
        return recognitions(arrays, labels=labels, model_version=version, data_version=data_version)

    def _learn_version(self, version: int, left_s: float) -> Steps[tuple[Sequence[str], str]]:
        """Labels and data version of a version, as its own configuration tells them."""
        try:
            parameters = (yield from self._read_config(str(version), left_s)).parameters
        except ModelNotReady as error:
            raise VersionNotFound(f"{self.url}: version {version} answered and is gone ({error}); ask again") from None
        told = parameters.get(f"labels.{version}", "null")
        labels = self.labels(version) if self.labels else _list(told)
        if labels is None:
            raise BadRequest(f"{self.url} does not tell the labels of version {version}; pass `labels` yourself")
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
            raise BadRequest(f"{self.url}: model {self.model} takes no batches of square images; name another model")
        return Served(
            image[0], config.max_batch_size, {key: value.string_value for key, value in config.parameters.items()}
        )

    def _register(self, left_s: float) -> Steps[Region]:
        served = yield from self.learn()
        size = served.batch * served.size**2 * 3
        region = Region.of(size)
        arguments = {"name": region.name, "key": region.key, "byte_size": size, "client_timeout": left_s}
        try:
            yield Call("register_system_shared_memory", arguments)
        except BaseException as error:
            region.close()
            if isinstance(error, ServingError) and "shared memory region" in str(error):
                raise BadRequest(
                    f"{error}; this machine's memory is not the server's: ask with transport='uint8'"
                ) from None
            raise
        finally:
            region.unlink()
        return region

    def _unregister(self, region: Region) -> Steps[None]:
        for _ in range(20):
            try:
                arguments = {"name": region.name, "client_timeout": self.timeout_s}
                return (yield Call("unregister_system_shared_memory", arguments))
            except ServingError as error:
                if IN_USE not in str(error):
                    raise
            yield Pause(0.05)


def _list(text: str) -> list[str] | None:
    """The names in a JSON list; None where it is none."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, list) and all(isinstance(name, str) for name in found) else None
