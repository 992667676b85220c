"""The table of a data version that says which classes are given for which: confusion.parquet, written by cleaning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.cleaning import Noise
from models.errors import ManifestError

NAME = "confusion.parquet"
SCHEMA = pa.schema([("true", pa.string()), ("given", pa.string()), ("share", pa.float64())])
ANY_OTHER = ""  # as `given`: each class that is no pair with `true`


def write_confusion(noise: Noise, folder: Path, *, classes: list[str]) -> None:
    """One row for each pair that occurs, each class with itself, and each class with any other; share is P(given | true)."""
    names = np.array(classes, dtype=object)
    true = np.concatenate([names, names, names[noise.true]])
    given = np.concatenate([names, np.full(len(names), ANY_OTHER, object), names[noise.given]])
    share = np.concatenate([noise.kept, noise.rest, noise.share])
    table = pa.table({"true": true, "given": given, "share": share}, schema=SCHEMA)
    pq.write_table(table.replace_schema_metadata({"rate": repr(noise.rate)}), folder / NAME, compression="zstd")


def read_confusion(folder: Path, *, classes: list[str]) -> Noise | None:
    """What `write_confusion` wrote, in the order of these classes; None where a version has no such table.

    A class that it does not name is taken for right.

    Raises:
        ManifestError: not such a table.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        table = pq.read_table(path)
        true, given, share = (table[name].to_numpy(zero_copy_only=False) for name in SCHEMA.names)
        rate = float(table.schema.metadata[b"rate"])
    except (KeyError, TypeError, ValueError, OSError, pa.ArrowException) as error:
        raise ManifestError(f"{path}: no confusion of classes ({error}); take the data version again") from None
    place = {name: position for position, name in enumerate(classes)} | {ANY_OTHER: -1}
    row, column = (np.array([place.get(name, -2) for name in names], np.int64) for names in (true, given))
    kept, rest = np.ones(len(classes)), np.zeros(len(classes))
    own, other, pair = ((row >= 0) & mask for mask in (row == column, column == -1, (column >= 0) & (row != column)))
    kept[row[own]], rest[row[other]] = share[own], share[other]
    return Noise(rate, len(classes), kept, row[pair], column[pair], share[pair], rest)
