"""From photos to ranked products: over the wire, or from the ONNX file alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pixels import BadPhoto, decode, to_square
from serving.access import Access
from serving.errors import BadGraph
from serving.model_config import Signature, TritonConfig
from serving.wire import connect, errors_named, infer

LOCAL_BATCH = 8
PADDING = -1  # the id that fills an answer when there are fewer classes than k, or none is believed
ACCEPTED = 0.5  # of `known`: graphs put their threshold here


@dataclass(frozen=True)
class Recognition:
    """One photo's answer: (label, probability) best first, and which model said so (version None: a local file).

    score: how sure the model is that the photo shows a product it knows at all, in [0, 1]; known: it reaches ACCEPTED.
    """

    ranked: tuple[tuple[str, float], ...]
    score: float
    model_version: int | None
    data_version: str
    embedding: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)  # (512,)

    @property
    def known(self) -> bool:
        """Whether the model takes the photo for one of its products."""
        return self.score >= ACCEPTED


class Recognizer:
    """Recognises photos at a Triton endpoint; a context manager that closes its connection.

    Args:
        server: host:port of its gRPC, or an Access with tokens and TLS.
        labels: the labels of a model version; called once for each version met.
        timeout_s: deadline of one request (at most the server's largest batch of photos).
    """

    def __init__(
        self,
        server: Access | str,
        *,
        labels: Callable[[int], Sequence[str]],
        model: str = "products",
        timeout_s: float = 10.0,
    ) -> None:
        access = Access.of(server)
        self.url = access.url
        self.model = model
        self.timeout_s = timeout_s
        self._labels = labels
        self._client = connect(access)
        self._served: TritonConfig | None = None
        self._names: dict[int, Sequence[str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def recognise(self, photos: Sequence[bytes | Path], *, embedding: bool = False) -> list[Recognition]:
        """One answer per photo, in order; `embedding` asks for the (512,) vectors too.

        Raises:
            BadPhoto: names the photo that is not one; before anything of its chunk is sent.
            ServingError: what the server or the way to it did.
        """
        served = self._served or self._read_config()
        found: list[Recognition] = []
        for images in _chunks(photos, size=served.signature.size, batch=served.max_batch_size):
            found += self._ask(images, embedding)
        return found

    def _ask(self, images: NDArray[np.uint8], embedding: bool) -> list[Recognition]:
        answer = infer(
            self._client, images, url=self.url, model=self.model, outputs=_outputs(embedding), timeout_s=self.timeout_s
        )
        if answer.version not in self._names:
            self._names[answer.version] = self._labels(answer.version)
        return _recognitions(
            answer.arrays,
            labels=self._names[answer.version],
            model_version=answer.version,
            data_version=self._data_version(answer.version),
        )

    def _data_version(self, version: int) -> str:
        """From the parameters of the served configuration, read again when a version is new here."""
        key = f"data_version.{version}"
        served = self._served or self._read_config()
        if key not in served.parameters:
            served = self._read_config()
        return served.parameters.get(key, "")

    def _read_config(self) -> TritonConfig:
        with errors_named(self.url):
            reply = self._client.get_model_config(self.model, client_timeout=self.timeout_s)
        self._served = TritonConfig.from_proto(reply.config)
        return self._served


class LocalRecognizer:
    """Recognises photos from an ONNX file alone, whose metadata name its labels; no server.

    Raises:
        BadGraph: not a graph of the endpoint's contract, or without labels.
    """

    def __init__(self, graph: Path) -> None:
        signature = Signature.read(graph)
        self._labels = _own_labels(signature, graph)
        try:
            self._session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exceptions share no public base
            raise BadGraph(f"{graph} cannot answer here ({error}); take the file of a model version") from None
        self._size = signature.size
        self._data_version = signature.metadata.get("data_version", "")

    def recognise(self, photos: Sequence[bytes | Path], *, embedding: bool = False) -> list[Recognition]:
        """As Recognizer.recognise."""
        names = _outputs(embedding)
        found: list[Recognition] = []
        for images in _chunks(photos, size=self._size, batch=LOCAL_BATCH):
            arrays = dict(zip(names, self._session.run(names, {"image": images}), strict=True))
            found += _recognitions(arrays, labels=self._labels, model_version=None, data_version=self._data_version)
        return found


def _own_labels(signature: Signature, graph: Path) -> list[str]:
    """Line i of the metadata's JSON list names class i."""
    try:
        labels = json.loads(signature.metadata["labels"])
    except (KeyError, json.JSONDecodeError):
        labels = None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise BadGraph(f"{graph}: metadata `labels` is no JSON list of names; take the file of a model version")
    return labels


def _outputs(embedding: bool) -> list[str]:
    return ["ids", "probs", "known", "embedding"] if embedding else ["ids", "probs", "known"]


def _chunks(photos: Sequence[bytes | Path], *, size: int, batch: int) -> Iterator[NDArray[np.uint8]]:
    """Batches (<= batch, size, size, 3) uint8; decoded one batch at a time."""
    squares = (_square(photo, number, size) for number, photo in enumerate(photos))
    while chunk := list(islice(squares, batch)):
        yield np.stack(chunk)


def _square(photo: bytes | Path, number: int, size: int) -> NDArray[np.uint8]:
    try:
        data = photo.read_bytes() if isinstance(photo, Path) else photo
        return to_square(decode(data), size)
    except (BadPhoto, OSError) as error:
        name = photo if isinstance(photo, Path) else f"photo {number}"
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadPhoto(f"{name}: {reason}; leave it out or replace it") from None


def _recognitions(
    arrays: dict[str, NDArray], *, labels: Sequence[str], model_version: int | None, data_version: str
) -> list[Recognition]:
    vectors = arrays.get("embedding", [None] * len(arrays["ids"]))
    return [
        Recognition(
            tuple((labels[i], float(p)) for i, p in zip(ids, probs, strict=True) if i != PADDING),
            float(known[0]),
            model_version,
            data_version,
            vector,
        )
        for ids, probs, known, vector in zip(arrays["ids"], arrays["probs"], arrays["known"], vectors, strict=True)
    ]
