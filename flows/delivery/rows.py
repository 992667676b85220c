"""Reads the rows of a delivery, before any photo is opened.

A delivery is a folder per class (`SOURCE/LABEL/photo` or `SOURCE/{train,val,test}/LABEL/photo`), or a manifest (CSV or
Parquet) with the columns path, label, and optionally split and source. A row that cannot be used is refused, naming the
field at fault, and the other rows are read. A fault that concerns the whole delivery raises BadDelivery.
"""

from __future__ import annotations

import csv
import functools
import itertools
import os
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flows.errors import BadDelivery
from models.data.manifest import SPLITS

REQUIRED = ("path", "label")
KNOWN = (*REQUIRED, "split", "source")
MANIFESTS = ("manifest.csv", "manifest.parquet")

ROWS = pa.schema([(name, pa.string()) for name in ("path", "label", "split", "source")])
CHUNK = 8192  # rows that exist as Python objects at a time


class Line(NamedTuple):
    """One photo as delivered: `path` is relative to the delivery; `split` is "" if the supplier names none."""

    path: str
    label: str
    split: str
    source: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that cannot be used: the field at fault, and the reason."""

    path: str
    label: str
    source: str
    field: str
    reason: str


@dataclass(frozen=True)
class Delivery:
    """Usable rows (columns of ROWS) and refused rows, in the order of delivery; paths are relative to `folder`."""

    folder: Path
    rows: pa.Table
    refused: list[Refused]


def read_delivery(source: Path, *, known: Iterable[str] = ()) -> Delivery:
    """Reads the folder or manifest `source`; `known` are the labels that the workspace already has.

    Raises:
        BadDelivery: no usable row, only one class, an unknown column or split, or two spellings of one label.
    """
    _real.cache_clear()
    usable: list[pa.RecordBatch] = []
    refused: list[Refused] = []
    announced = _announced(source)
    while chunk := list(itertools.islice(announced, CHUNK)):
        refused += [row for row in chunk if isinstance(row, Refused)]
        rows = [row for row in chunk if isinstance(row, Line)]
        usable.append(pa.record_batch([[row[i] for row in rows] for i in range(len(ROWS))], schema=ROWS))
    delivery = Delivery(source if source.is_dir() else source.parent, pa.Table.from_batches(usable, ROWS), refused)
    _check(source, delivery, known=set(known))
    return delivery


def check_source(source: Path) -> None:
    """Reads the first row only, which takes no time, so that a wrong path or column is reported before anything starts.

    Raises:
        BadDelivery: the source does not exist or cannot be read, or its header or layout is wrong.
    """
    _real.cache_clear()
    next(_announced(source), None)


def _announced(source: Path) -> Iterator[Line | Refused]:
    if source.is_file():
        return _read_manifest(source)
    if not source.is_dir():
        raise BadDelivery(
            f"{source}: no such file or folder; give a folder per class, or a manifest.csv or manifest.parquet"
        )
    found = [source / name for name in MANIFESTS if (source / name).is_file()]
    if len(found) > 1:
        raise BadDelivery(f"{source} holds both {MANIFESTS[0]} and {MANIFESTS[1]}; give the path of the one to read")
    return _read_manifest(found[0]) if found else _read_folders(source)


def _check(source: Path, delivery: Delivery, *, known: set[str]) -> None:
    labels, refused = sorted(pc.unique(delivery.rows["label"]).to_pylist()), delivery.refused
    if not labels and not refused:
        raise BadDelivery(f"{source} is empty; put the photos into one folder per class")
    if not labels:
        first = refused[0]
        example = f"the first is {first.path!r}, field {first.field}: {first.reason}"
        raise BadDelivery(f"{source}: no usable row, all {len(refused)} were refused; {example}")
    spellings = {_squeezed(label): label for label in sorted(known)}
    for label in labels:
        other = spellings.setdefault(_squeezed(label), label)
        if other != label:
            raise BadDelivery(
                f"{source}: labels {other!r} and {label!r} differ only in case or white space; use one spelling"
            )
    if len(spellings) < 2:
        raise BadDelivery(f"{source}: all photos are of one class, {labels[0]!r}; deliver photos of at least two")


def _squeezed(label: str) -> str:
    return "".join(label.casefold().split())


def _read_folders(source: Path) -> Iterator[Line | Refused]:
    folders = sorted(path.name for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
    splits = [name for name in folders if name in SPLITS]
    if splits and len(splits) != len(folders):
        label = next(name for name in folders if name not in SPLITS)
        raise BadDelivery(
            f"{source} mixes split folders ({', '.join(splits)}) and class folders ({label!r}); use only one layout"
        )
    for path in _walk(source):
        parts = path.split("/")
        split = parts[0] if splits and len(parts) > 1 else ""
        inner = parts[1:] if split else parts
        label = inner[0] if len(inner) > 1 else ""
        yield _row(str(source), path, label=label, split=split, source=source.name)


def _walk(source: Path) -> Iterator[str]:
    """Files in a fixed order, without hidden ones, which systems make. Links to folders are listed, not followed."""
    for folder, names, files in os.walk(source):
        names[:] = sorted(name for name in names if not name.startswith("."))
        linked = [name for name in names if os.path.islink(os.path.join(folder, name))]
        inner = os.path.join(folder, "").removeprefix(os.path.join(source, ""))
        yield from (inner + name for name in sorted([*files, *linked]) if not name.startswith("."))


def _read_manifest(path: Path) -> Iterator[Line | Refused]:
    records = read_records(path, required=REQUIRED, known=KNOWN)
    folder, name = str(path.parent), path.parent.absolute().name
    for number, record in records:
        split = record.get("split", "").strip()
        if split and split not in SPLITS:
            raise BadDelivery(
                f"{path}: row {number}, field split: {split!r} is unknown; use {', '.join(SPLITS)} or leave it blank"
            )
        source = record.get("source", "").strip() or name
        yield _row(folder, record["path"], label=record["label"], split=split, source=source)


def read_records(path: Path, *, required: Sequence[str], known: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields the rows of a CSV or Parquet file as texts, numbered from 1; empty cells are "".

    Raises:
        BadDelivery: the file cannot be read, lacks a required column or has an unknown one.
    """
    read = _parquet if path.suffix == ".parquet" else _csv
    return read(path, partial(_check_columns, path, required=required, known=known))


def _csv(path: Path, check: Callable[[list[str]], None]) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            check(list(reader.fieldnames or []))
            for number, record in enumerate(reader, 1):
                if None in record or None in record.values():
                    raise BadDelivery(
                        f"{path}: row {number} has another number of cells than the header; quote cells with commas"
                    )
                yield number, record
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadDelivery(f"{path}: not a CSV file in UTF-8 ({error}); save it as UTF-8") from None


def _parquet(path: Path, check: Callable[[list[str]], None]) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise BadDelivery(f"{path}: not a Parquet file that can be read ({error}); write it again") from None
    check(file.schema_arrow.names)
    number = 0
    for batch in file.iter_batches():
        for record in batch.to_pylist():
            number += 1
            yield number, {key: "" if value is None else str(value) for key, value in record.items()}


def _check_columns(path: Path, columns: list[str], *, required: Sequence[str], known: Sequence[str]) -> None:
    for column in columns:
        if column not in known:
            raise BadDelivery(f"{path}: unknown column {column!r}; known are {', '.join(known)}")
    for column in required:
        if column not in columns:
            raise BadDelivery(f"{path}: column {column!r} is missing; it has {', '.join(columns) or 'none'}")


def _row(folder: str, path: str, *, label: str, split: str, source: str) -> Line | Refused:
    label, fault = _clean(label)
    reason = _bad_path(folder, path)
    if reason or fault:
        shown = path.encode(errors="replace").decode()
        return Refused(shown, label, source, "path" if reason else "label", reason or fault)
    return Line(path, label, split, source)


@functools.lru_cache
def _clean(label: str) -> tuple[str, str]:
    """The label with white space collapsed and in Unicode form NFC, as systems differ in that; and its fault, or ""."""
    label = label.encode(errors="replace").decode()
    label = unicodedata.normalize("NFC", " ".join(label.split()))
    if any(unicodedata.category(char) == "Cc" for char in label):
        return label, "holds a control character"
    return label, "" if label else "is blank"


def _bad_path(folder: str, path: str) -> str:
    """Reason why `path` cannot be read from `folder`; "" if it can."""
    if not path.strip():
        return "is blank"
    if "\0" in path or path.encode(errors="replace").decode() != path:
        return "is not a UTF-8 name"
    if path.startswith("/") or ".." in path.split("/"):
        return "leaves the folder of the delivery"
    inner, name = os.path.split(path)
    try:
        real = os.path.join(_real(os.path.join(folder, inner)), name)
        mode = os.lstat(real).st_mode
        if stat.S_ISLNK(mode):  # resolving every path takes longer than reading the photo, and links are rare
            real = os.path.realpath(real, strict=True)
            mode = os.stat(real).st_mode
        root = _real(folder)
    except (OSError, RuntimeError):
        return "no such file"
    if not real.startswith(os.path.join(root, "")):
        return "leaves the folder of the delivery through a link"
    return "" if stat.S_ISREG(mode) else "is not a file"


@functools.lru_cache
def _real(folder: str) -> str:
    return os.path.realpath(folder, strict=True)
