"""Pairs of near-duplicates of a data version: `near.parquet`, a file that only versions with such pairs have."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

NAME = "near.parquet"
PAIRS = pa.schema(
    [
        ("id", pa.string()),
        ("near", pa.string()),  # id of the photo on the other side of the test split
        ("decision", pa.string()),  # near-test or near-train; "": kept, see flows.delivery.near
        ("distance", pa.float32()),  # of the fingerprints
        ("difference", pa.float32()),  # of the photos, laid over each other
    ]
)


def read_pairs(path: Path) -> pa.Table:
    """The pairs in the file; none if there is no file, as in versions of earlier releases."""
    return pq.read_table(path, schema=PAIRS) if path.exists() else PAIRS.empty_table()


def write_pairs(folder: Path, pairs: pa.Table) -> None:
    """Writes `folder`/near.parquet if there are pairs; the same pairs give the same bytes."""
    if len(pairs):
        pairs = pairs.sort_by([("id", "ascending"), ("near", "ascending")]).combine_chunks()
        pq.write_table(pairs, folder / NAME, compression="zstd")
