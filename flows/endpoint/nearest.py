"""Photos of the assortment that are most similar to a sent one, by the embeddings of the graph that answers.

No embeddings of all photos exist, and 2.5 million would take hours to compute. So a photo is compared only with some photos of
each product that the answer ranks. The endpoint embeds them when they are needed, and the last vectors stay in memory.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flows.errors import InputError, WorkspaceBusy
from flows.review.neighbours import Neighbour
from flows.review.photos import Photos
from pixels import BadPhoto
from serving import Recognition

COUNT = 8
PRODUCTS = 5
PHOTOS_OF = 100  # of each product; ids are hashes, so the first ones are as random as any
CHUNK = 32  # photos of one question: a few batches, so that the questions of clients are answered in between
PATIENCE_S = 8.0  # no further question is asked after that; the next search continues where this one ended
KEPT = 20_000  # vectors in memory, 2 KB each


class Ask(Protocol):
    """Asks the endpoint about encoded photos: one answer each, in order."""

    def __call__(self, photos: Sequence[bytes], *, embedding: bool) -> list[Recognition | BadPhoto]: ...


@dataclass(frozen=True)
class Nearest:
    """The most similar photos, best first, with the cosine of the embeddings.

    compared, left_out: photos of the ranked products that were compared, and that time did not suffice for.
    """

    photos: list[Neighbour]
    compared: int
    left_out: int
    model_version: int | None


class NearestPhotos:
    """Searches for nearest photos, one at a time, so that the endpoint's other clients hardly notice. Threads may share it."""

    def __init__(self, ask: Ask) -> None:
        self._ask, self._lock = ask, threading.Lock()
        self._kept: dict[tuple[int | None, int], NDArray[np.float32] | None] = {}  # None: the photo cannot be decoded

    def find(self, photo: bytes, photos: Photos, *, patience_s: float = PATIENCE_S) -> Nearest:
        """The photos of a data version that are nearest to an encoded one, among those of its likeliest products.

        Raises:
            InputError: the photo cannot be decoded.
            WorkspaceBusy: other searches are going on.
            EndpointMissing: the endpoint does not answer.
        """
        [answer] = self._ask([photo], embedding=True)
        if isinstance(answer, BadPhoto):
            raise InputError(f"this photo cannot be compared: {answer.reason}")
        assert answer.embedding is not None
        rows = candidates(photos, [label for label, _ in answer.ranked[:PRODUCTS]])
        if not self._lock.acquire(timeout=patience_s):
            raise WorkspaceBusy("other photos are being compared at the moment; try again in a few seconds")
        try:
            self._embed(photos, rows, version=answer.model_version, until=time.monotonic() + patience_s)
            keys = {row: (answer.model_version, int(photos.id[row])) for row in rows}
            found = {row: self._kept[key] for row, key in keys.items() if key in self._kept}
        finally:
            self._lock.release()
        known = [(row, vector) for row, vector in found.items() if vector is not None]
        return Nearest(_best(photos, known, answer.embedding), len(known), len(rows) - len(found), answer.model_version)

    def _embed(self, photos: Photos, rows: Sequence[int], *, version: int | None, until: float) -> None:
        """Keeps the vectors of these photos, as far as time suffices."""
        missing = [row for row in rows if (version, int(photos.id[row])) not in self._kept]
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            for row, answer in zip(chunk, self._ask([photos.read(row) for row in chunk], embedding=True), strict=True):
                self._keep(int(photos.id[row]), answer, version)
            if time.monotonic() >= until:
                return

    def _keep(self, photo: int, answer: Recognition | BadPhoto, version: int | None) -> None:
        if isinstance(answer, BadPhoto):
            self._kept[version, photo] = None
        elif answer.embedding is not None:  # of another model version, if the endpoint has just switched
            self._kept[answer.model_version, photo] = _unit(answer.embedding)
        while len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]


def candidates(photos: Photos, labels: Sequence[str]) -> list[int]:
    """Rows of at most PHOTOS_OF kept photos of each product, in turn: if time is short, every product has had some."""
    of_each = [photos.of_class(photos.label.code(label))[:PHOTOS_OF].tolist() for label in labels]
    return [rows[place] for place in range(PHOTOS_OF) for rows in of_each if place < len(rows)]


def _best(
    photos: Photos, known: Sequence[tuple[int, NDArray[np.float32]]], own: NDArray[np.float32]
) -> list[Neighbour]:
    """The photos with the greatest cosine."""
    if not known:
        return []
    similarity = np.stack([vector for _, vector in known]) @ _unit(own)
    order = np.argsort(-similarity, kind="stable")[:COUNT]
    rows = [known[place][0] for place in order]
    return [
        Neighbour(photos.name(row), photos.label[row], float(similarity[place]))
        for row, place in zip(rows, order, strict=True)
    ]


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vector with length 1: our graphs give no other, but those of others may."""
    return vector / np.maximum(np.linalg.norm(vector), np.float32(1e-12))
