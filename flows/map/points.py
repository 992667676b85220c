"""Points of a map: a small Parquet file, named by all that it depends on, in the workspace's folder of maps.

A purge deletes that folder, since a point is data about a photo; the next look makes the map again without it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from durable import replacing
from flows.map.sources import Source
from flows.review.photos import Photos
from models.recipe.config import digest

METHOD = 1  # grows when the same embeddings give other points
SEED = 0
SCHEMA = pa.schema([("id", pa.uint64()), ("x", pa.float32()), ("y", pa.float32())])


@dataclass(frozen=True)
class Points:
    """Photos on a map; id: (M,) uint64, sorted; xy: (M, 2) float32 positions in [-1, 1]."""

    id: NDArray[np.uint64]
    xy: NDArray[np.float32]


def file_of(maps: Path, source: Source, photos: Photos) -> Path:
    """The file of the map of a data version by this source, which may not be there yet.

    The folders of a source are named by what they depend on, and their `done.json` has the hash of each file; hashing the
    embeddings themselves would take minutes.
    """
    hashes = [_recorded(folder) for folder in source.folders]
    names = [folder.name for folder in source.folders]
    drawn = photos.id[source.rows(photos, seed=SEED)]
    ids = hashlib.sha256(drawn.astype("<u8").tobytes()).hexdigest()
    return maps / f"{digest(METHOD, SEED, source.name, names, hashes, ids)}.parquet"


def write_points(file: Path, points: Points) -> None:
    """Writes the points; a kill or a power cut leaves the file complete or missing."""
    table = pa.table([points.id, points.xy[:, 0], points.xy[:, 1]], schema=SCHEMA)
    with replacing(file) as out:
        pq.write_table(table, out, compression="zstd")


def read_points(file: Path) -> Points | None:
    """The points of a map; None if the file is missing or damaged, so that it has to be made."""
    try:
        table = pq.read_table(file, schema=SCHEMA)
    except (FileNotFoundError, pa.ArrowInvalid, OSError):
        return None
    return Points(table["id"].to_numpy(), np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1))


def _recorded(folder: Path) -> str:
    done = folder / "done.json"
    return done.read_text(encoding="utf-8") if done.exists() else ""
