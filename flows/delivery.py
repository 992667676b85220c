"""What a supplier sent, before a single photo is opened.

A delivery is a folder per class (`SOURCE/LABEL/photo` or `SOURCE/{train,val,test}/LABEL/photo`), or a manifest (CSV or
Parquet) with the columns path, label and, if wanted, split and source. A row that cannot be used is refused with the
field at fault and never stops the rest; what makes the whole delivery doubtful is a BadDelivery.
"""

from __future__ import annotations

import csv
import functools
import os
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from flows.errors import BadDelivery
from models.data.manifest import SPLITS

REQUIRED = ("path", "label")
KNOWN = (*REQUIRED, "split", "source")
MANIFESTS = ("manifest.csv", "manifest.parquet")


@dataclass(frozen=True, slots=True)
class Row:
    """One photo as announced: `path` is what the supplier calls it, relative to `folder`; `split` is "" when open."""

    folder: Path
    path: str
    label: str
    split: str
    source: str

    @property
    def file(self) -> Path:
        """Where the photo lies."""
        return self.folder / self.path


@dataclass(frozen=True, slots=True)
class Refused:
    """One row that cannot be used: which field, and why."""

    path: str
    label: str
    source: str
    field: str
    reason: str


@dataclass(frozen=True)
class Delivery:
    """The usable rows and the refused ones, in the order of delivery."""

    rows: list[Row]
    refused: list[Refused]


def read_delivery(source: Path, *, known: Iterable[str] = ()) -> Delivery:
    """Read the folder or manifest `source`; `known` are the labels that the workspace already has.

    Raises:
        BadDelivery: nothing usable, one class only, an unknown column or split, or two spellings of one label.
    """
    _real.cache_clear()
    rows: list[Row] = []
    refused: list[Refused] = []
    for row in _announced(source):
        (rows if isinstance(row, Row) else refused).append(row)  # type: ignore[arg-type]  # the condition has told which
    _check(source, rows, refused, known=set(known))
    return Delivery(rows, refused)


def _announced(source: Path) -> Iterator[Row | Refused]:
    if source.is_file():
        return _read_manifest(source)
    if not source.is_dir():
        raise BadDelivery(
            f"{source}: no such file or folder; give a folder per class, or a manifest.csv or manifest.parquet"
        )
    found = [source / name for name in MANIFESTS if (source / name).is_file()]
    if len(found) > 1:
        raise BadDelivery(f"{source} holds both {MANIFESTS[0]} and {MANIFESTS[1]}; name the one to read")
    return _read_manifest(found[0]) if found else _read_folders(source)


def _check(source: Path, rows: list[Row], refused: list[Refused], *, known: set[str]) -> None:
    if not rows and not refused:
        raise BadDelivery(f"{source} is empty; put the photos into one folder per class")
    if not rows:
        first = refused[0]
        why = f"the first is {first.path!r}, field {first.field}: {first.reason}"
        raise BadDelivery(f"{source}: no usable row, all {len(refused)} were refused; {why}")
    spellings = {_squeezed(label): label for label in sorted(known)}
    for label in sorted({row.label for row in rows}):
        other = spellings.setdefault(_squeezed(label), label)
        if other != label:
            raise BadDelivery(
                f"{source}: labels {other!r} and {label!r} differ only in case or white space; write them one way"
            )
    if len(spellings) < 2:
        raise BadDelivery(f"{source}: all photos are of one class, {rows[0].label!r}; a recogniser needs two or more")


def _squeezed(label: str) -> str:
    return "".join(label.casefold().split())


def _clean(label: str) -> str:
    """Stripped, inner white space collapsed, composed the same way whichever system wrote the name."""
    return unicodedata.normalize("NFC", " ".join(label.split()))


def _read_folders(source: Path) -> Iterator[Row | Refused]:
    folders = sorted(path.name for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
    given = [name for name in folders if name in SPLITS]
    if given and len(given) != len(folders):
        odd = next(name for name in folders if name not in SPLITS)
        raise BadDelivery(
            f"{source} mixes split folders ({', '.join(given)}) and class folders ({odd!r}); use one of the two layouts"
        )
    for path in _walk(source):
        parts = path.relative_to(source).parts
        split = parts[0] if given and len(parts) > 1 else ""
        inner = parts[1:] if split else parts
        label = inner[0] if len(inner) > 1 else ""
        yield _row(source, "/".join(parts), label=label, split=split, source=source.name)


def _walk(source: Path) -> Iterator[Path]:
    """Files in a fixed order, without hidden ones: those are the system's. Links to folders are shown, not followed."""
    for folder, names, files in os.walk(source):
        names[:] = sorted(name for name in names if not name.startswith("."))
        linked = [name for name in names if (Path(folder) / name).is_symlink()]
        yield from (Path(folder) / name for name in sorted([*files, *linked]) if not name.startswith("."))


def _read_manifest(path: Path) -> Iterator[Row | Refused]:
    records = read_records(path, required=REQUIRED, known=KNOWN)
    folder = path.parent
    name = folder.absolute().name
    for number, record in records:
        split = record.get("split", "").strip()
        if split and split not in SPLITS:
            raise BadDelivery(
                f"{path}: row {number}, field split: {split!r} is unknown; use {', '.join(SPLITS)} or leave it blank"
            )
        source = record.get("source", "").strip() or name
        yield _row(folder, record["path"], label=record["label"], split=split, source=source)


def read_records(path: Path, *, required: Sequence[str], known: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV or Parquet file as texts, numbered from 1; empty cells are "".

    Raises:
        BadDelivery: it cannot be read, lacks a column or has an unknown one.
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
        raise BadDelivery(f"{path}: not a CSV file in UTF-8 ({error}); save it as such") from None


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


def _row(folder: Path, path: str, *, label: str, split: str, source: str) -> Row | Refused:
    shown = path.encode(errors="replace").decode()
    label = _clean(label.encode(errors="replace").decode())
    reason = _bad_path(folder, path)
    if reason:
        return Refused(shown, label, source, "path", reason)
    if not label:
        return Refused(shown, label, source, "label", "is blank")
    if any(unicodedata.category(char) == "Cc" for char in label):
        return Refused(shown, label, source, "label", "holds a control character")
    return Row(folder, path, label, split, source)


def _bad_path(folder: Path, path: str) -> str:
    """Why `path` cannot be read from `folder`; "" when it can."""
    if not path.strip():
        return "is blank"
    if "\0" in path or path.encode(errors="replace").decode() != path:
        return "is not a UTF-8 name"
    if os.path.isabs(path) or ".." in path.split("/"):
        return "leaves the folder of the delivery"
    inner, name = os.path.split(path)
    try:
        parent, root = _real(os.path.join(folder, inner)), _real(str(folder))
        real = os.path.join(parent, name)
        if os.path.islink(real):  # links are rare; to resolve every photo's path takes longer than to read it
            real = os.path.realpath(real, strict=True)
        mode = os.stat(real).st_mode
    except (OSError, RuntimeError):
        return "no such file"
    if not real.startswith(os.path.join(root, "")):
        return "leaves the folder of the delivery through a link"
    return "" if stat.S_ISREG(mode) else "is not a file"


@functools.lru_cache
def _real(folder: str) -> str:
    return os.path.realpath(folder, strict=True)
