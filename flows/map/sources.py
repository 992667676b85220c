"""Embeddings that a map is drawn by: of the networks that scored a data version's photos in cleaning.

Only embeddings of one network can be compared. In this order:
    features.npy     of a frozen backbone, which all folds of a cleaning share: all scored photos
    network.pt       of one fold, which computes embeddings now: MOST_COMPUTED photos
    embeddings.npy   of one fold, if these are more photos
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from flows.errors import InputError
from flows.review.photos import Photos, numbers
from flows.review.suggestions import scorers

FEATURES, EMBEDDINGS, NETWORK, SCORES = "features.npy", "embeddings.npy", "network.pt", "scores.parquet"
BLOCK_BYTES = 1 << 25  # of the float32 vectors that are read at a time
MOST_COMPUTED = 100_000  # photos that a network embeds for a map; bounds the time


@dataclass(frozen=True)
class Source:
    """Folders in `runs/stages/` with the file `name`, of one network."""

    folders: tuple[Path, ...]
    name: str

    def rows(self, photos: Photos, *, seed: int) -> NDArray[np.int64]:
        """Sorted rows of the photos to draw, if the source has them: all, or MOST_COMPUTED of them, label issues first."""
        if self.name != NETWORK or len(photos) <= MOST_COMPUTED:
            return np.arange(len(photos))
        order = np.random.default_rng(seed).permutation(len(photos))
        is_calm = photos.decision.is_one_of([""])
        return np.sort(order[np.argsort(is_calm[order], kind="stable")][:MOST_COMPUTED])


def find_source(stages: Path, photos: Photos) -> Source:
    """The embeddings of the photos of a data version, by its column `scored_by`.

    Raises:
        InputError: the version was never cleaned, or its networks are gone.
    """
    names = sorted(scorers(photos))
    if not names:
        raise InputError("no network has looked at these photos yet; retrain, or run `cleanshelf clean RECIPE`")
    folders = [stages / name for name in names]
    if shared := tuple(folder for folder in folders if (folder / FEATURES).is_file()):
        return Source(shared, FEATURES)
    network = next((folder for folder in folders if (folder / NETWORK).is_file()), None)
    own = [folder for folder in folders if (folder / EMBEDDINGS).is_file()]
    largest = max(own, key=lambda folder: _num_rows(folder / SCORES), default=None)
    if largest and (network is None or _num_rows(largest / SCORES) > MOST_COMPUTED):
        return Source((largest,), EMBEDDINGS)
    if network is None:
        raise InputError(
            f"the networks that scored these photos are no longer in {stages}; retrain, or run `cleanshelf clean RECIPE`"
        )
    return Source((network,), NETWORK)


def _num_rows(file: Path) -> int:
    return int(pq.read_metadata(file).num_rows)


@dataclass(frozen=True)
class Vectors:
    """Embeddings in files that are mapped into memory, in the order of the files.

    id: (N,) uint64 ids of the photos, each once; tables: one (n, d) per file; rows: their rows that count, N in all.
    """

    id: NDArray[np.uint64]
    tables: Sequence[NDArray[np.floating]]
    rows: Sequence[NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.id)

    def select(self, chosen: NDArray[np.bool_]) -> Vectors:
        """Those of the photos where `chosen` (N,) is True."""
        ends = np.cumsum([len(rows) for rows in self.rows])[:-1]
        parts = np.split(chosen, ends)
        return Vectors(self.id[chosen], self.tables, [rows[part] for rows, part in zip(self.rows, parts, strict=True)])

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Blocks (n, d) of unit vectors in order; a row of NaN for an embedding that is not finite, or has no direction."""
        for table, rows in zip(self.tables, self.rows, strict=True):
            height = max(1, BLOCK_BYTES // (4 * table.shape[1]))
            for start in range(0, len(rows), height):
                yield _directions(table[rows[start : start + height]])


def read_vectors(source: Source, wanted: NDArray[np.uint64]) -> Vectors:
    """Embeddings of the photos `wanted` (sorted ids) that the source has; a photo in several files counts in the first.

    Raises:
        InputError: a file of embeddings is damaged.
    """
    tables, rows, ids = [], [], []
    seen = np.zeros(len(wanted), np.bool_)
    for folder in source.folders:
        found = numbers(pq.read_table(folder / SCORES, columns=["id"])["id"])
        table = _mapped(folder / source.name, length=len(found))
        place = np.minimum(np.searchsorted(wanted, found), max(len(wanted) - 1, 0))
        fresh = (wanted[place] == found) & ~seen[place] if len(wanted) else np.zeros(len(found), np.bool_)
        seen[place[fresh]] = True
        tables.append(table)
        rows.append(np.flatnonzero(fresh))
        ids.append(found[fresh])
    return Vectors(np.concatenate(ids), tables, rows)


def _mapped(file: Path, *, length: int) -> NDArray[np.floating]:
    try:
        table: NDArray[np.floating] = np.load(file, mmap_mode="r")
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error}); delete its folder and clean the labels again") from None
    if table.ndim != 2 or len(table) != length:
        raise InputError(
            f"{file} has {table.shape} values for {length} photos; delete its folder and clean the labels again"
        )
    return table


def _directions(block: NDArray[np.floating]) -> NDArray[np.float32]:
    vectors = np.asarray(block, np.float32)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    unit[~np.isfinite(unit).all(axis=1)] = np.nan
    return unit
