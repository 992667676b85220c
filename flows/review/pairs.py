"""Near-duplicates across the test split, and photos that came with several labels, as rows of `Photos`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from flows.data.near import NAME, read_pairs
from flows.review.photos import Photos, numbers
from models.data.manifest import NEAR, read_table_file

CONFLICT = "conflict"  # decision of ingestion on a photo with several labels
CLAIMS = ("id", "label", "source", "path")


@dataclass(frozen=True)
class Pairs:
    """P near-duplicates; arrays have one element per pair.

    row: the photo that ingestion decided about; near: its partner, -1 if an earlier release did not note it. distance,
    difference: of the fingerprints and of the photos, NaN without partner.
    """

    row: NDArray[np.int64]
    near: NDArray[np.int64]
    distance: NDArray[np.float32]
    difference: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.row)

    def those(self, chosen: NDArray[np.bool_]) -> Pairs:
        """The pairs for which `chosen` (P,) is true."""
        return Pairs(self.row[chosen], self.near[chosen], self.distance[chosen], self.difference[chosen])


@dataclass(frozen=True)
class Conflicts:
    """K photos that came with several labels: `row` (K,), ascending.

    claims: who claimed which label, columns `label`, `source` and `path`, grouped by photo; those of photo k are the rows
    from starts[k] to starts[k + 1].
    """

    row: NDArray[np.int64]
    starts: NDArray[np.int64]
    claims: pa.Table

    def __len__(self) -> int:
        return len(self.row)

    def labels(self, position: int) -> list[dict[str, str]]:
        """The claims about one of the K photos."""
        start, end = self.starts[position : position + 2]
        claims: list[dict[str, str]] = self.claims.slice(start, end - start).to_pylist()
        return claims

    def position(self, row: int) -> int:
        """Position of a photo among the K; -1 if it came with one label."""
        place = int(np.searchsorted(self.row, row))
        return place if place < len(self.row) and self.row[place] == row else -1

    def with_label(self, label: str) -> NDArray[np.bool_]:
        """(K,) True for photos for which this label was claimed."""
        found = np.flatnonzero(pc.equal(self.claims["label"], label).to_numpy())
        chosen = np.zeros(len(self.row), bool)
        chosen[np.searchsorted(self.starts, found, side="right") - 1] = True
        return chosen


def near_pairs(photos: Photos) -> Pairs:
    """The near-duplicates across the test split."""
    pairs = read_pairs(photos.folder / NAME)
    row, near = (rows_of(photos, pairs[name]) for name in ("id", "near"))
    is_alone = photos.decision.is_one_of(NEAR)
    is_alone[row] = False
    alone = np.flatnonzero(is_alone)
    nothing = np.full(len(alone), np.nan, np.float32)
    return Pairs(
        np.concatenate([row, alone]),
        np.concatenate([near, np.full(len(alone), -1)]),
        np.concatenate([pairs["distance"].to_numpy(), nothing]),
        np.concatenate([pairs["difference"].to_numpy(), nothing]),
    )


def conflicts(photos: Photos) -> Conflicts:
    """The photos that came with several labels, also those whose conflict a person has settled."""
    claims = read_table_file(photos.folder / "conflicts.parquet", name="conflicts", columns=CLAIMS)
    rows = rows_of(photos, claims["id"])
    order = np.argsort(rows, kind="stable")
    row, starts = np.unique(rows[order], return_index=True)
    return Conflicts(row, np.append(starts, len(rows)), claims.drop(["id"]).take(pa.array(order)))


def rows_of(photos: Photos, ids: pa.ChunkedArray) -> NDArray[np.int64]:
    """(M,) row of each id, all of which the version has."""
    return np.searchsorted(photos.id, numbers(ids))
