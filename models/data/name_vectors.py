"""Vectors of the names of classes, as a text tower makes them: a Parquet file that a member's `name_vectors` names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from contract.labels import fold, shown
from models.data.positions import positions
from models.errors import ConfigError

COLUMNS = ("class", "vector")
SPELL = "write them as in labels.parquet, column label"
MAKE = "make the file again as docs/tasks/clean-labels.md shows"


def read_name_vectors(path: Path, classes: Sequence[str], *, key: str, width: int | None = None) -> NDArray[np.float32]:
    """(C, d) the vector of each class; zeros for a class that the file does not have. Names of other classes are ignored.

    A shop makes one file for its whole assortment, of which a data version may have a part.

    Args:
        key: key of the recipe that names the file, for messages.
        width: d of the features of the backbone; None: not checked here.

    Raises:
        ConfigError: the file cannot be read or lacks a column; a name is missing or repeated, or all are of no class; a
            vector is missing, of another width, zero or not finite.
    """
    table, where = _read(path, key), f"{key}: {path}"
    names = table.column("class").to_pylist()
    vectors = _vectors(table.column("vector"), where, width)
    rows, broken, zero = _rows(names, classes), ~np.isfinite(vectors).all(axis=1), ~vectors.any(axis=1)
    is_known = rows >= 0
    repeated = is_known & (np.bincount(rows[is_known], minlength=len(classes))[rows] > 1)
    for wrong, problem, way_out in (
        (broken, "vectors hold NaN or infinity", MAKE),
        (zero, "vectors are all zeros", "leave out classes that have no vector"),
        (~is_known & (not is_known.any()), "names are of no class of this data version", SPELL),
        (repeated, "rows are of a class that has more than one", "leave one of each"),
    ):
        _refuse(np.asarray(wrong), names, where, problem, way_out)
    found = np.zeros((len(classes), vectors.shape[1]), np.float32)
    found[rows[is_known]] = vectors[is_known]
    return found


def _read(path: Path, key: str) -> pa.Table:
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise ConfigError(f"{key}: {path} {found}; correct the path, or leave the key out")
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(
            f"{key}: {path} cannot be read as Parquet ({type(error).__name__}); copy it again, or {MAKE}"
        ) from None
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise ConfigError(
            f"{key}: {path} has no column {missing[0]!r}, but {', '.join(table.column_names) or 'none'}; {MAKE}"
        )
    texts, lists = (table.schema.field(name).type for name in COLUMNS)
    is_text = pa.types.is_string(texts) or pa.types.is_large_string(texts)
    if (
        not is_text
        or not _holds_floats(lists)
        or not len(table)
        or any(table.column(name).null_count for name in COLUMNS)
    ):
        raise ConfigError(
            f"{key}: {path} has {len(table)} rows with class as {texts} and vector as {lists}, or an empty cell; give a text and "
            f"a list of floats in each row: {MAKE}"
        )
    return table


def _holds_floats(kind: pa.DataType) -> bool:
    of_lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_one(kind) for is_one in of_lists) and pa.types.is_floating(kind.value_type)


def _vectors(column: pa.ChunkedArray, where: str, width: int | None) -> NDArray[np.float32]:
    """(n, d) numbers of a column of lists; a missing number is NaN."""
    lengths = pc.list_value_length(column).to_numpy()
    expected = int(lengths[0]) if width is None else width
    if (wrong := lengths != expected).any():
        row = int(wrong.argmax())
        needed = "the first one" if width is None else "a feature of the backbone"
        raise ConfigError(
            f"{where}: row {row + 1}: a vector of {lengths[row]} numbers, but {needed} has {expected}; take the text tower that "
            "belongs to the backbone"
        )
    numbers = pc.list_flatten(column).to_numpy()
    return np.asarray(numbers, np.float32).reshape(len(column), expected)


def _rows(names: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64]:
    """(n,) class of each name, spelt as the class or folded; -1 for none."""
    rows = positions(names, classes)
    unknown = np.flatnonzero(rows < 0)
    rows[unknown] = positions([fold(names[row]) for row in unknown.tolist()], classes)
    return rows


def _refuse(wrong: NDArray[np.bool_], names: Sequence[str], where: str, problem: str, way_out: str) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        raise ConfigError(
            f"{where}: {int(wrong.sum())} of {len(names)} {problem}, first in row {row + 1}, {shown(names[row])}; {way_out}"
        )
