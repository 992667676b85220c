"""Fingerprints of photos, and the search for candidates: pairs that may be near-duplicates.

`flows.delivery.near` looks at the candidates more closely.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from flows.data.columns import to_arrow, to_numpy
from flows.live import counted
from models.progress import Progress
from pixels.fingerprint import BYTES

NEAR = 6.0  # root mean square difference of two fingerprints of a candidate, 0 to 255
PARTNERS = 8  # candidates that are looked at for each photo
ALL_PAIRS = 2**30  # pairs up to which all are compared: about 10 s
TREES, CELL, AXES, SAMPLE = 3, 1024, 12, 65_536
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


class Candidates(NamedTuple):
    """P pairs of photos that may be near-duplicates: position of each in its own array, and distance; nearest first.

    Sorted by row, then by distance.
    """

    row: NDArray[np.int64]
    other: NDArray[np.int64]
    distance: NDArray[np.float32]


def candidates(fingerprints: NDArray[np.uint8], others: NDArray[np.uint8]) -> Candidates:
    """Pairs within NEAR: each of `fingerprints` (N, BYTES) with up to PARTNERS of `others` (M, BYTES), the nearest ones.

    Compares all pairs, if there are few; else those that fall into the same cell of one of TREES partitions of all
    fingerprints into cells of at most CELL. So the work grows with N + M, even if all photos look the same.
    """
    found, passes = [], 1 if len(fingerprints) * len(others) <= ALL_PAIRS else TREES
    with counted("looking for near-duplicates", passes * len(fingerprints)) as progress:
        for ours, theirs in _cells(fingerprints, others):
            pairs = _nearest(fingerprints[ours], others[theirs], progress)
            found.append((ours[pairs.row], theirs[pairs.other], pairs.distance))
    if not found:
        return Candidates(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    return _first(Candidates(*(np.concatenate(column) for column in zip(*found, strict=True))))


def _cells(
    fingerprints: NDArray[np.uint8], others: NDArray[np.uint8]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Sets of rows that are compared with each other."""
    number = len(fingerprints)
    if number * len(others) <= ALL_PAIRS:
        yield np.arange(number), np.arange(len(others))
        return
    random = np.random.default_rng(0)
    places = _places(fingerprints, others)
    for _ in range(TREES):
        order, starts = _partition(places, random)
        for cell in np.split(order, starts[1:]):
            yield cell[cell < number], cell[cell >= number] - number


def _places(fingerprints: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N + M, AXES) projections of all fingerprints on the axes along which a sample of them varies most."""
    every = max(1, (len(fingerprints) + len(others)) // SAMPLE)
    sample = np.concatenate([fingerprints[::every], others[::every]]).astype(np.float64)
    axes = np.linalg.eigh(np.cov(sample.T))[1][:, -AXES:].astype(np.float32)
    blocks = (part[start : start + SAMPLE] for part in (fingerprints, others) for start in range(0, len(part), SAMPLE))
    return np.concatenate([block.astype(np.float32) @ axes for block in blocks])


def _partition(places: NDArray[np.float32], random: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """An order of the places (N, AXES) and the starts of cells in it.

    Every cell is cut where it is widest, near its middle, until none holds more than CELL places.
    """
    order, starts = random.permutation(len(places)), np.zeros(1, np.int64)  # a mixture, where all are equal
    while (sizes := np.diff(starts, append=len(order))).max() > CELL:
        here, cell = places[order], np.repeat(np.arange(len(sizes)), sizes)
        mean, square = (np.add.reduceat(values, starts) / sizes[:, None] for values in (here, here**2))
        widest = (square - mean**2).argmax(1)
        order = order[np.lexsort((here[np.arange(len(here)), widest[cell]], cell))]
        cut = starts + (sizes * random.uniform(0.4, 0.6)).astype(np.int64)
        starts = np.stack([starts, cut], 1).ravel()
    return order, starts


def _nearest(ours: NDArray[np.uint8], theirs: NDArray[np.uint8], progress: Progress) -> Candidates:
    """Candidates among all pairs. Sums of squares stay below 2**24, so float32 holds them exactly."""
    limit, found = BYTES * NEAR**2, []
    for start in range(0, len(ours), BLOCK):
        a = ours[start : start + BLOCK].astype(np.float32)
        for begin in range(0, len(theirs), BLOCK):
            b = theirs[begin : begin + BLOCK].astype(np.float32)
            squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
            rows = np.flatnonzero(squares.min(1) <= limit)
            columns = np.argsort(squares[rows], axis=1, kind="stable")[:, :PARTNERS]
            nearest = np.take_along_axis(squares[rows], columns, axis=1)
            row, column = np.nonzero(nearest <= limit)
            found.append((start + rows[row], begin + columns[row, column], nearest[row, column]))
        progress.add(len(a))
    if not found:
        return Candidates(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    row, other, squares = (np.concatenate(column) for column in zip(*found, strict=True))
    return _first(Candidates(row, other, np.sqrt(squares / BYTES)))


def _first(pairs: Candidates) -> Candidates:
    """The pairs in order, without repetitions: at most PARTNERS per row."""
    order = np.lexsort((pairs.other, pairs.distance, pairs.row))
    row, other = pairs.row[order], pairs.other[order]
    is_new = np.ones(len(row), np.bool_)
    is_new[1:] = (row[1:] != row[:-1]) | (other[1:] != other[:-1])
    row, other, distance = row[is_new], other[is_new], pairs.distance[order][is_new]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    first = rank < PARTNERS
    return Candidates(row[first], other[first], distance[first])
