"""Nearest neighbours of a photo, by the features or embeddings that cleaning left with a fold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flows.review.photos import Photos
from flows.review.suggestions import Suggestions

COUNT = 8
PER_CLASS = 2_000  # photos of each class among the candidates
SAMPLE = 20_000  # photos of any class among the candidates
RUN = 500  # photos that lie together in the sample, so that it is read in few pieces
BLOCK = 4_096  # vectors that are compared at once
FILES = ("features.npy", "embeddings.npy")  # of a backbone that all folds share; of the fold's own network


@dataclass(frozen=True)
class Neighbour:
    """A photo, its label, and the cosine of the two photos' vectors, in [-1, 1]."""

    photo: str
    label: str
    similarity: float


def nearest(photos: Photos, suggestions: Suggestions, row: int, *, count: int = COUNT) -> list[Neighbour]:
    """The photos most similar to one, best first; empty if cleaning kept no vectors for it.

    All vectors of 2.5 million photos would be 6 GB to read. So only candidates are compared: photos of the label in question
    and of the suggested classes, at most PER_CLASS of each, and with a sample of SAMPLE photos that is always the same. Photos of
    other folds are left out unless all folds share one backbone.
    """
    home = int(suggestions.fold[row])
    name = _file(suggestions, home)
    if not name:
        return []
    folds = range(len(suggestions.folds)) if name == FILES[0] else [home]
    own = _vectors(suggestions, home, name)[int(suggestions.place[row])].astype(np.float32)
    found_rows, found = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    candidates = _candidates(photos, suggestions, row)
    for fold in folds:
        if _file(suggestions, fold) == name:
            rows = candidates[suggestions.fold[candidates] == fold]
            found_rows.append(rows)
            found.append(_similarity(_vectors(suggestions, fold, name), suggestions.place[rows], own))
    rows, similarity = np.concatenate(found_rows), np.concatenate(found)
    best = np.argsort(-similarity, kind="stable")[:count]
    return [Neighbour(photos.name(int(rows[i])), photos.label[int(rows[i])], float(similarity[i])) for i in best]


def _candidates(photos: Photos, suggestions: Suggestions, row: int) -> NDArray[np.int64]:
    classes = {int(suggestions.asked[row]), *suggestions.top[row].tolist()} - {-1}
    parts = [photos.of_class(code)[:PER_CLASS] for code in sorted(classes)]
    # Ids are hashes, so runs of consecutive photos are as random as single ones.
    starts = np.linspace(0, max(0, len(photos) - RUN), SAMPLE // RUN).astype(np.int64)
    sample = (starts[:, None] + np.arange(RUN)).ravel()
    found = np.unique(np.concatenate([*parts, sample[sample < len(photos)]]))
    return found[(found != row) & (suggestions.fold[found] >= 0)]


def _file(suggestions: Suggestions, fold: int) -> str:
    if fold < 0:
        return ""
    return next((name for name in FILES if (suggestions.folds[fold] / name).is_file()), "")


def _vectors(suggestions: Suggestions, fold: int, name: str) -> NDArray[np.float16]:
    vectors: NDArray[np.float16] = np.load(suggestions.folds[fold] / name, mmap_mode="r")
    return vectors


def _similarity(
    vectors: NDArray[np.float16], places: NDArray[np.int32], own: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(M,) cosine of each of the vectors at `places` with the photo's own one."""
    result = np.empty(len(places), np.float32)
    for start in range(0, len(places), BLOCK):
        block = vectors[places[start : start + BLOCK]].astype(np.float32)
        lengths = np.sqrt(np.einsum("ij,ij->i", block, block)) * np.linalg.norm(own)
        result[start : start + BLOCK] = block @ own / np.maximum(lengths, 1e-12)
    return result
