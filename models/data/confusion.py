"""Confusion table of a data version, confusion.parquet: the estimated noise of its labels, written by cleaning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.cleaning import Noise
from models.errors import ManifestError

NAME = "confusion.parquet"
SCHEMA = pa.schema([("true", pa.string()), ("given", pa.string()), ("share", pa.float64())])
ANY_OTHER = ""  # value of `given` for each class that does not form a pair with `true`


def write_confusion(noise: Noise, folder: Path, *, classes: list[str]) -> None:
    """Writes P(given | true) as share: for each pair of classes, each class with itself, and each with any other."""
    names = np.array(classes, dtype=object)
    true = np.concatenate([names, names, names[noise.true]])
    given = np.concatenate([names, np.full(len(names), ANY_OTHER, object), names[noise.given]])
    share = np.concatenate([noise.kept, noise.rest, noise.share])
    table = pa.table({"true": true, "given": given, "share": share}, schema=SCHEMA)
    pq.write_table(table.replace_schema_metadata({"rate": repr(noise.rate)}), folder / NAME, compression="zstd")


def read_confusion(folder: Path, *, classes: list[str]) -> Noise | None:
    """Table of `write_confusion`, in the order of these classes; None if the version has no such table.

    Classes that the table does not name are assumed to have correct labels.

    Raises:
        ManifestError: the file is not a confusion table.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        table = pq.read_table(path)
        true, given, share = (table[name].to_numpy(zero_copy_only=False) for name in SCHEMA.names)
        rate = float(table.schema.metadata[b"rate"])
    except (KeyError, TypeError, ValueError, OSError, pa.ArrowException) as error:
        raise ManifestError(f"{path}: not a confusion table of classes ({error}); restore the data version") from None
    position = {name: i for i, name in enumerate(classes)} | {ANY_OTHER: -1}
    row, column = (np.array([position.get(name, -2) for name in names], np.int64) for names in (true, given))
    kept, rest = np.ones(len(classes)), np.zeros(len(classes))
    own, other, pair = ((row >= 0) & mask for mask in (row == column, column == -1, (column >= 0) & (row != column)))
    kept[row[own]], rest[row[other]] = share[own], share[other]
    return Noise(rate, len(classes), kept, row[pair], column[pair], share[pair], rest)
