"""Recognition of photos from an ONNX file, without a server."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import onnxruntime

from pixels import BadPhoto
from serving.client.batches import Answered, Numbered, all_good, batches, merged, prepared
from serving.client.ordering import Progress, in_order
from serving.client.photos import Photo, square
from serving.client.recognition import Recognition, outputs, recognitions
from serving.errors import BadGraph
from serving.signature import Signature

BATCH = 8
IN_FLIGHT = 2  # one batch is computed on all cores while the next one is decoded


class LocalRecognizer:
    """Recogniser that needs an ONNX file only, with labels in its metadata; accepts the same photos as Recognizer.

    Raises:
        BadGraph: the graph breaks the endpoint's contract or names no labels.
    """

    def __init__(self, graph: Path | str) -> None:
        graph = Path(graph)
        signature = Signature.read(graph)
        self._labels = _own_labels(signature, graph)
        try:
            self._session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exceptions share no public base
            raise BadGraph(f"{graph} cannot be loaded here ({error}); take the file of a model version") from None
        self._graph = graph
        self._size = signature.size
        self._data_version = signature.metadata.get("data_version", "")

    def recognise(self, photos: Sequence[Photo], *, embedding: bool = False) -> list[Recognition]:
        """Same as Recognizer.recognise."""
        with closing(self.stream(photos, embedding=embedding)) as answers:
            return all_good(answers)

    def stream(
        self, photos: Iterable[Photo], *, embedding: bool = False, progress: Progress | None = None
    ) -> Generator[Answered, None, None]:
        """Same as Recognizer.stream."""
        todo = batches(photos, BATCH)
        return in_order(lambda batch: self._answer(batch, embedding), todo, in_flight=IN_FLIGHT, progress=progress)

    def _answer(self, batch: Numbered, embedding: bool) -> list[Answered]:
        squares = prepared(batch, square, size=self._size)
        good = [each for each in squares if not isinstance(each, BadPhoto)]
        if not good:
            return squares
        names = outputs(embedding)
        try:
            arrays = dict(zip(names, self._session.run(names, {"image": np.stack(good)}), strict=True))
        except Exception as error:  # ONNX Runtime's own exceptions share no public base
            raise BadGraph(f"{self._graph} cannot answer here ({error}); take the file of a model version") from None
        answers = recognitions(arrays, labels=self._labels, model_version=None, data_version=self._data_version)
        return merged(batch, squares, answers)


def _own_labels(signature: Signature, graph: Path) -> list[str]:
    """Names of the classes by id: the JSON list `labels` of the metadata."""
    try:
        labels = json.loads(signature.metadata["labels"])
    except (KeyError, json.JSONDecodeError):
        labels = None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise BadGraph(f"{graph}: metadata `labels` is not a JSON list of names; take the file of a model version")
    return labels
