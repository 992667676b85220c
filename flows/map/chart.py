"""Map of a data version as a browser draws it: positions, and a colour code of each point for every way to colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.map.points import Points
from flows.review.photos import Photos, Words

LARGE = 18  # classes with a colour of their own; all smaller ones are "other"
BINS = 10  # of the score
DECISIONS = {
    "": "no decision",
    "dropped": "left out",
    "doubted": "in doubt",
    "relabelled": "label changed",
    "conflict": "several labels",
    "near-test": "near-duplicate",
    "near-train": "near-duplicate",
    "checked": "decided by a person",
}


@dataclass(frozen=True)
class Colouring:
    """One way to colour points; code: (M,) uint8 positions in `names`; values of a scale are named in order."""

    name: str
    code: NDArray[np.uint8]
    names: list[str]
    is_scale: bool = False

    @property
    def legend(self) -> list[dict[str, Any]]:
        """Name and number of points of each code."""
        counts = np.bincount(self.code, minlength=len(self.names)).tolist()
        return [{"name": name, "count": count} for name, count in zip(self.names, counts, strict=True)]


@dataclass(frozen=True)
class Chart:
    """Points in the order in which they are drawn: label issues last, so that none of them is hidden.

    row: (M,) rows in the photos of the version; xy: (M, 2) float32.
    """

    row: NDArray[np.int64]
    xy: NDArray[np.float32]
    colourings: tuple[Colouring, ...]

    def to_bytes(self) -> bytes:
        """M times x and y as little-endian float32, then for each colouring M codes of one byte."""
        return b"".join([self.xy.astype("<f4").tobytes(), *(each.code.tobytes() for each in self.colourings)])

    def inside(self, polygon: list[tuple[float, float]]) -> NDArray[np.int64]:
        """(K,) sorted rows of the photos within a polygon, by the even-odd rule."""
        from matplotlib.path import Path

        corners = np.asarray(polygon, np.float64)
        near = np.flatnonzero(((self.xy >= corners.min(axis=0)) & (self.xy <= corners.max(axis=0))).all(axis=1))
        within = Path(corners).contains_points(self.xy[near])
        return np.sort(self.row[near[within]])


def chart_of(photos: Photos, points: Points) -> Chart:
    """The chart of those points whose photos the version has."""
    row = np.minimum(np.searchsorted(photos.id, points.id), max(len(photos) - 1, 0))
    found = photos.id[row] == points.id if len(photos) else np.zeros(len(points.id), np.bool_)
    row, xy = row[found], points.xy[found]
    order = np.argsort(~photos.decision.is_one_of([""])[row], kind="stable")
    row, xy = row[order], xy[order]
    return Chart(row, xy, (_by_class(photos, row), _by_decision(photos, row), _by_score(photos, row),
                           _by_word("split", photos.split, row)))  # fmt: skip


def _by_class(photos: Photos, row: NDArray[np.int64]) -> Colouring:
    """Largest classes first; small ones are one."""
    label = photos.label.codes[row]
    counts = np.bincount(label, minlength=len(photos.classes))
    order = np.argsort(-counts, kind="stable")
    large = order[: LARGE + 1] if np.count_nonzero(counts) == LARGE + 1 else order[:LARGE]
    large = large[counts[large] > 0]
    place = np.full(len(counts), len(large), np.uint8)
    place[large] = np.arange(len(large))
    others = np.count_nonzero(counts) - len(large)
    names = [photos.classes[code] for code in large] + ([f"{others:,} other classes"] if others else [])
    return Colouring("class", place[label], names)


def _by_decision(photos: Photos, row: NDArray[np.int64]) -> Colouring:
    names = list(dict.fromkeys(DECISIONS.values()))
    place = np.array([names.index(DECISIONS[value]) for value in photos.decision.values], np.uint8)
    return Colouring("decision", place[photos.decision.codes[row]], names)


def _by_score(photos: Photos, row: NDArray[np.int64]) -> Colouring:
    score = photos.score[row]
    code = np.clip(np.nan_to_num(score) * BINS, 0, BINS - 1).astype(np.uint8)
    code[np.isnan(score)] = BINS
    names = [f"{low / BINS:g} to {(low + 1) / BINS:g}" for low in range(BINS)]
    return Colouring("score", code, [*names, "not scored"], is_scale=True)


def _by_word(name: str, column: Words, row: NDArray[np.int64]) -> Colouring:
    return Colouring(name, column.codes[row].astype(np.uint8), list(column.values))
