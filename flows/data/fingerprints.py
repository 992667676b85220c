"""Fingerprints of photos, and the search for near-duplicates: the same picture encoded, sized or cropped differently.

Near-duplicates are kept on one side of the test split.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from flows.data.columns import to_arrow, to_numpy
from pixels.fingerprint import BYTES

NEAR = 6.0  # root mean square difference of two fingerprints, 0 to 255; docs/tasks/data-versions.md has the figures
FINGERPRINTS = pa.schema([("id", pa.string()), ("fingerprint", pa.binary(BYTES))])
NAME, FORMER_NAME = "fingerprints.parquet", "looks.parquet"  # files of a version; the latter in format 1, column `look`
BLOCK = 1024  # fingerprints compared at a time, on either side


@dataclass(frozen=True)
class Fingerprints:
    """Ids (N,) of 16 bytes, sorted, and fingerprints (N, BYTES) uint8 of the photos of a version."""

    id: NDArray[np.bytes_]
    fingerprint: NDArray[np.uint8]

    @classmethod
    def read(cls, folder: Path | None) -> Fingerprints:
        """Fingerprints of the version in `folder`; empty if there is no version or it predates them."""
        if folder and (folder / NAME).exists():
            return cls.of(pq.read_table(folder / NAME, schema=FINGERPRINTS))
        if folder and (folder / FORMER_NAME).exists():
            table = pq.read_table(folder / FORMER_NAME, columns=["id", "look"])
            return cls.of(table.rename_columns(FINGERPRINTS.names))
        return cls.of(FINGERPRINTS.empty_table())

    @classmethod
    def of(cls, photos: pa.Table) -> Fingerprints:
        """Fingerprints in the columns `id` and `fingerprint` of a table that is sorted by id."""
        fingerprints = to_numpy(photos["fingerprint"], BYTES)
        return cls(to_numpy(photos["id"], 16), fingerprints.view(np.uint8).reshape(-1, BYTES))

    def write(self, folder: Path) -> None:
        """Writes `folder`/fingerprints.parquet; the same fingerprints give the same bytes."""
        columns = [pa.array(self.id).cast(pa.string()), to_arrow(self.fingerprint, BYTES)]
        pq.write_table(pa.table(columns, schema=FINGERPRINTS), folder / NAME, compression="zstd")

    def select(self, rows: NDArray[np.bool_]) -> Fingerprints:
        """Fingerprints for which `rows` (N,) is true."""
        return Fingerprints(self.id[rows], self.fingerprint[rows])

    def merged(self, other: Fingerprints) -> Fingerprints:
        """Fingerprints of both, sorted by id."""
        if not len(self.id):
            return other
        ids = np.concatenate([self.id, other.id])
        order = np.argsort(ids)
        return Fingerprints(ids[order], np.concatenate([self.fingerprint, other.fingerprint])[order])


def nearly_in(fingerprints: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(N,) true where one of `fingerprints` (N, BYTES) is within NEAR of any of `others` (M, BYTES).

    Only pairs whose mean brightness differs by at most NEAR are compared, because the difference of two means never
    exceeds the root mean square difference.
    """
    found = np.zeros(len(fingerprints), np.bool_)
    brightness, other_brightness = fingerprints.sum(1, dtype=np.int64), others.sum(1, dtype=np.int64)  # exact
    order, other_order = np.argsort(brightness), np.argsort(other_brightness)
    for start in range(0, len(fingerprints), BLOCK):
        rows = order[start : start + BLOCK]
        darkest, brightest = brightness[rows[0]] - BYTES * NEAR, brightness[rows[-1]] + BYTES * NEAR
        first = np.searchsorted(other_brightness, darkest, "left", other_order)
        last = np.searchsorted(other_brightness, brightest, "right", other_order)
        ours = fingerprints[rows].astype(np.float32)
        for begin in range(first, last, BLOCK):
            theirs = others[other_order[begin : min(begin + BLOCK, last)]].astype(np.float32)
            squares = (ours**2).sum(1)[:, None] + (theirs**2).sum(1) - 2 * ours @ theirs.T
            found[rows] |= (squares <= BYTES * NEAR**2).any(axis=1)
    return found
