"""Reads the rows of tables that users write: CSV, Parquet or JSON lines, as the suffix of the file says."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache, partial
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from contract.labels import fold, shown
from models.errors import BadTable

Row = tuple[int, dict[str, Any]]
Columns = Callable[[Sequence[str]], list[str]]

SUFFIXES = (".csv", ".parquet", ".jsonl")  # of tables
FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet computes starts with one of these
ROUNDED = {np.float16: 2**11, np.float32: 2**24}  # from here on, whole numbers may have been rounded
LIST = 200  # characters of a header in a message
_TYPES = pa.types
_PLAIN = (
    _TYPES.is_string, _TYPES.is_large_string, _TYPES.is_string_view, _TYPES.is_binary, _TYPES.is_large_binary,
    _TYPES.is_binary_view, _TYPES.is_fixed_size_binary, _TYPES.is_integer, _TYPES.is_floating, _TYPES.is_decimal,
    _TYPES.is_boolean, _TYPES.is_null,
)  # fmt: skip


def read_rows(path: Path, *, required: Sequence[str], known: Sequence[str] | None = None) -> Iterator[Row]:
    """Yields the rows by column, numbered from 1: values as the file has them; an empty cell is None, in CSV "".

    Names of columns are compared without case, and spaces around them. In CSV the header shows whether cells are
    separated by commas, semicolons or tabs; a cell that starts with an apostrophe and one of FORMULAS loses the
    apostrophe.

    Args:
        known: all columns that the file may have; None: columns that are not required are ignored.

    Raises:
        BadTable: the file cannot be read; a column is missing, unknown, repeated or not of texts and numbers; a row has
            another number of cells.
    """
    check_file(path)
    read = {".parquet": _parquet, ".jsonl": _json_lines}.get(path.suffix.lower(), _csv)
    return read(path, partial(_columns, path, required=tuple(required), known=known))


def check_file(path: Path) -> None:
    """Raises BadTable unless the path is a regular file: what is checked first is read twice, and a pipe is read once."""
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "is a pipe or a device" if path.exists() else "no such file"
        raise BadTable(f"{path}: {problem}; give a table, such as a CSV file")


def as_text(value: Any) -> tuple[str, str]:
    """A value of `read_rows` as a text, "" for an empty cell; and the reason why it is not a text, or ""."""
    if value is None or isinstance(value, str):
        return value or "", ""
    if isinstance(value, bytes):
        try:
            return value.decode(), ""
        except UnicodeDecodeError:
            return "", "is not UTF-8; write it as text"
    if value != value:
        return "", "is missing (NaN); write it as text, or leave the row out"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value), ""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        limit = ROUNDED.get(type(value), 2**53)
        problem = f"is of type {type(value).__name__}, which rounds whole numbers from {limit} on; write it as text"
        return (str(int(value)), "") if abs(float(value)) < limit else ("", problem)
    if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value():
        return str(int(value)), ""
    return "", f"is of type {type(value).__name__.strip('_').lower()}; write it as text"


def text_of(where: str, record: Mapping[str, Any], name: str) -> str:
    """The text in a column of a row, without white space at its ends; "" for an empty cell.

    Raises:
        BadTable: the value is not a text; the message starts with `where`.
    """
    text, reason = as_text(record.get(name))
    if reason:
        raise BadTable(f"{where}, field {name}: {short(record[name])} {reason}")
    return text.strip()


def number_of(where: str, record: Mapping[str, Any], name: str) -> float:
    """The number in a column of a row, also if it is written as text; may be NaN or infinite.

    Raises:
        BadTable: the value is not a number; the message starts with `where`.
    """
    value = record.get(name)
    try:
        if isinstance(value, bool | None):
            raise ValueError
        return float(value)
    except (TypeError, ValueError):
        raise BadTable(f"{where}, field {name}: {short(value)} is not a number; correct it") from None


def short(value: Any) -> str:
    """A value of `read_rows` as a message shows it."""
    value = float(value) if isinstance(value, np.floating) else value  # more digits
    try:
        return _cut(shown(value) if isinstance(value, str) else str(value), 60)
    except RecursionError:
        return "a deeply nested value"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _columns(path: Path, header: Sequence[str], *, required: Sequence[str], known: Sequence[str] | None) -> list[str]:
    """Name of each column of the header as the caller knows it; "" for a column to ignore."""
    wanted = known or required
    names = [fold(name).casefold() for name in header]
    for name, written in zip(names, header, strict=True):
        if known and name not in known:
            raise BadTable(f"{path}: unknown column {short(written)}; known are {', '.join(known)}")
        if name in wanted and names.count(name) > 1:
            twins = ", ".join(short(each) for each, twin in zip(header, names, strict=True) if twin == name)
            raise BadTable(f"{path}: column {name!r} occurs {names.count(name)} times ({_cut(twins, LIST)}); keep one")
    for name in required:
        if name not in names:
            has = _cut(shown(", ".join(header))[1:-1], LIST) or "none"
            raise BadTable(f"{path}: column {name!r} is missing; it has {has}")
    return [name if name in wanted else "" for name in names]


def _csv(path: Path, columns: Columns) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        first = file.readline()
        delimiter = next((each for each in ",;\t" if each in first), ",")
        lines = _lines(path, csv.reader(chain([first], file), delimiter=delimiter, strict=True))
        start, header = next(lines, (0, []))
        names = columns(header)
        for line, cells in lines:
            if len(cells) != len(header):
                raise BadTable(
                    f"{path}: row {line - start} has another number of cells than the header ({len(cells)}, not "
                    f"{len(header)}); quote cells with commas"
                )
            yield line - start, {name: _unguarded(cell) for name, cell in zip(names, cells, strict=True) if name}


def _lines(path: Path, reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Numbers and cells of the lines that are not blank; the first is the header."""
    number = -1
    try:
        for number, cells in enumerate(reader):
            _check_utf8(path, "CSV", number, "".join(cells))
            if cells:
                yield number, cells
    except csv.Error as error:
        raise BadTable(f"{path}: not a CSV file in row {number + 1} ({error}); correct its quotes") from None


def _check_utf8(path: Path, kind: str, number: int, text: str) -> None:
    """Raises BadTable if a byte of the row was not UTF-8, and therefore became half a surrogate pair."""
    byte = next((char for char in text if "\udc80" <= char <= "\udcff"), "") if not text.isascii() else ""
    if byte:
        where = f"row {number}" if number else "the header"
        raise BadTable(
            f"{path}: not a {kind} file in UTF-8 ({where} has the byte 0x{ord(byte) - 0xDC00:02x}); save it as UTF-8"
        )


def guarded(cell: str) -> str:
    """The cell as CSV files hold it: with an apostrophe in front if a spreadsheet would compute it."""
    return f"'{cell}" if cell.startswith(FORMULAS) else cell


def _unguarded(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and cell.startswith(FORMULAS, 1) else cell


def _parquet(path: Path, columns: Columns) -> Iterator[Row]:
    numbers = count(1)
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            names = dict(zip(schema.names, columns(schema.names), strict=True))
            wanted = [written for written, name in names.items() if name]
            for written in wanted:
                _check_type(path, file, schema.field(written))
            for batch in file.iter_batches(columns=wanted):
                keys = [names[written] for written in batch.schema.names]
                for values in zip(*map(_values, batch.columns), strict=True):
                    yield next(numbers), dict(zip(keys, values, strict=True))
    except (pa.ArrowException, OSError) as error:
        raise BadTable(f"{path}: not a Parquet file that can be read ({error}); write it again") from None


def _values(column: pa.Array) -> list[Any]:
    """Values of a column; floats of less than 64 bits keep their type, which says how far they are exact."""
    scalar = {pa.float16(): np.float16, pa.float32(): np.float32}.get(_kind(column.type))
    values: list[Any] = column.to_pylist()
    return values if scalar is None else [None if value is None else scalar(value) for value in values]


def _kind(type: pa.DataType) -> pa.DataType:
    return type.value_type if _TYPES.is_dictionary(type) else type


def _check_type(path: Path, file: pq.ParquetFile, field: pa.Field) -> None:
    """Raises BadTable unless the values of the column are texts, bytes, numbers or booleans."""
    kind = _kind(field.type)
    if any(is_kind(kind) for is_kind in _PLAIN):
        return
    first = next((batch.column(0) for batch in file.iter_batches(1, columns=[field.name])), "[]")
    value = " ".join(str(first).split())
    raise BadTable(
        f"{path}: row 1, column {short(field.name)}: {value[:60]} is of type {_cut(str(field.type), 60)}; write the column as text"
    )


class _Object(list[tuple[str, Any]]):
    """A JSON object as its pairs, which may repeat a key."""

    def __repr__(self) -> str:
        return repr(dict(self))


def _json_lines(path: Path, columns: Columns) -> Iterator[Row]:
    columns = lru_cache(columns)  # most objects have the same keys
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, 1):
            _check_utf8(path, "JSON lines", number, line)
            if not line.strip():
                continue
            try:
                pairs = json.loads(line, object_pairs_hook=_Object)
            except (ValueError, RecursionError) as error:
                raise BadTable(f"{path}: row {number} is not JSON ({error}); write one object per line") from None
            if not isinstance(pairs, _Object):
                raise BadTable(f"{path}: row {number} is not a JSON object; write one object per line")
            try:
                names = columns(tuple(key for key, _ in pairs))
            except BadTable as error:
                raise BadTable(f"{error} (row {number})") from None
            yield number, {name: value for name, (_, value) in zip(names, pairs, strict=True) if name}
