"""Reads the rows of a delivery, before any photo is opened.

A delivery is a folder per class, also inside split folders (`flows.delivery.folders`), or a manifest (CSV,
Parquet, JSON lines) with the columns path, label, and optionally split and source. Photos of split UNLABELLED have no
label. A row that cannot be used is refused, naming the field at fault, and the other rows are read. A fault that concerns
the whole delivery raises BadDelivery.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from contract import labels
from contract.labels import KnownLabels, fold
from flows.delivery.folders import PassedOver, read_folders, read_unlabelled, unreadable
from flows.errors import BadDelivery
from flows.live import counted
from models.data.manifest import SPLITS, UNLABELLED
from models.data.records import SUFFIXES, as_text, read_rows, short, text_of
from models.errors import BadTable

REQUIRED = ("path", "label")
OPTIONAL = ("split", "source")
MANIFESTS = tuple(f"manifest{suffix}" for suffix in SUFFIXES)  # in a folder, in any case

ROWS = pa.schema([(name, pa.string()) for name in ("path", "label", "split", "source")])
CHUNK = 8192  # rows that exist as Python objects at a time
SPELLINGS = 2**17  # labels whose spelling is remembered


class Line(NamedTuple):
    """One photo as delivered: `path` is relative to the delivery; `split` is "" if the supplier names none."""

    path: str
    label: str
    split: str
    source: str

    def spelt(self, spelling: Callable[[str], tuple[str, str]]) -> Line | Refused:
        """The line with its label as `spelling` gives it, or a refusal if that has a fault."""
        label, reason = spelling(self.label)
        if self.split == UNLABELLED:
            reason = "is given, but the split says unlabelled; leave one of them blank" if label else ""
        return Refused(self.path, label, self.source, "label", reason) if reason else self._replace(label=label)


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that cannot be used: the field at fault, and the reason."""

    path: str
    label: str
    source: str
    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}, {self.fault}"

    @property
    def fault(self) -> str:
        """The field at fault, a label with its value, and the reason."""
        value = f" {short(self.label)}" if self.field == "label" and self.label else ""
        return f"field {self.field}{value}: {self.reason}"


@dataclass(frozen=True)
class Delivery:
    """Usable rows (columns of ROWS) and refused rows, in the order of delivery; paths are relative to `folder`.

    seen: number of rows and files, counted as they were listed. passed: other files than photos.
    """

    folder: Path
    rows: pa.Table
    refused: list[Refused]
    seen: int = 0
    passed: PassedOver = field(default_factory=PassedOver)


def read_delivery(source: Path, *, known: Iterable[str] = (), unlabelled: bool = False) -> Delivery:
    """Reads the folder or manifest `source`; `known` are the labels that the workspace already has.

    unlabelled: take all photos below a folder as photos without a label.

    Raises:
        BadDelivery: no usable row, only one class, an unknown column or split, or two spellings of one label.
    """
    _real.cache_clear()
    existing = KnownLabels(known)
    spelling = functools.lru_cache(SPELLINGS)(partial(_spelling, existing))
    usable: list[pa.RecordBatch] = []
    refused: list[Refused] = []
    passed, seen = PassedOver(), 0
    announced = (
        row if isinstance(row, Refused) else row.spelt(spelling)
        for row in _announced(source, passed, unlabelled=unlabelled)
    )
    while chunk := list(itertools.islice(announced, CHUNK)):
        seen += len(chunk)
        refused += [row for row in chunk if isinstance(row, Refused)]
        rows = [row for row in chunk if isinstance(row, Line)]
        usable.append(pa.record_batch([[row[i] for row in rows] for i in range(len(ROWS))], schema=ROWS))
    folder, seen = source if source.is_dir() else source.parent, seen + passed.files.total()
    delivery = Delivery(folder, pa.Table.from_batches(usable, ROWS), refused, seen, passed)
    _check(source, delivery, existing)
    return delivery


def check_source(source: Path, *, unlabelled: bool = False) -> None:
    """Reports a wrong path, column or layout before anything starts: reads the first row, or only the names in the folders.

    unlabelled: as for `read_delivery`.

    Raises:
        BadDelivery: the source does not exist or cannot be read, or its header or layout is wrong.
    """
    _real.cache_clear()
    next(_announced(source, PassedOver(), unlabelled=unlabelled), None)


def _announced(source: Path, passed: PassedOver, *, unlabelled: bool) -> Iterator[Line | Refused]:
    if manifest := _manifest_of(source):
        if unlabelled:
            raise BadDelivery(
                f"{manifest}: --unlabelled takes the photos below a folder, but a manifest says itself which photos have no "
                f"label; write split {UNLABELLED} and a blank label in their rows, and ingest it without --unlabelled"
            )
        return _read_manifest(manifest)
    name, read = source.absolute().name, read_unlabelled if unlabelled else read_folders
    return (
        _row(str(source), path, label=label, split=split, source=name) for path, label, split in read(source, passed)
    )


def _manifest_of(source: Path) -> Path | None:
    """The manifest that is delivered, or the one in the folder that is; None for folders of classes.

    Raises:
        BadDelivery: nothing is there, several manifests are, or the folder cannot be read.
    """
    if source.is_file():
        return source
    if not source.is_dir():
        raise BadDelivery(f"{source}: no such file or folder; give a folder per class, or a {' or '.join(MANIFESTS)}")
    _, _, names = next(os.walk(source, onerror=unreadable))
    found = sorted(name for name in names if name.casefold() in MANIFESTS and os.path.isfile(source / name))
    if len(found) > 1:
        raise BadDelivery(f"{source} holds several manifests ({', '.join(found)}); give the path of the one to read")
    return source / found[0] if found else None


def _check(source: Path, delivery: Delivery, existing: KnownLabels) -> None:
    refused, num_usable = delivery.refused, len(delivery.rows)
    if not num_usable and not refused:
        raise BadDelivery(f"{_manifest_of(source)} has no rows; write one with path and label for each photo")
    example = f"the first is {short(refused[0].path)}, {refused[0].fault}" if refused else ""
    if not num_usable:
        raise BadDelivery(f"{source}: no usable row, all {len(refused)} were refused; {example}")
    found = sorted(label for label in pc.unique(delivery.rows["label"]).to_pylist() if label)
    first_of: dict[str, str] = {}
    for label in found:
        other = existing.alike(label) or first_of.setdefault(labels.likeness(label), label)
        if other != label and not {other, label} <= existing.labels:
            raise BadDelivery(
                f"{source}: labels {short(other)} and {short(label)} {labels.difference(other, label)}; "
                "use one spelling"
            )
    if found and len(existing.labels.union(found)) < 2:
        others = f"; {len(refused)} other rows were refused; {example}" if refused else ""
        raise BadDelivery(
            f"{source}: all photos are of one class, {short(found[0])}; deliver photos of at least two{others}"
        )


def _read_manifest(path: Path) -> Iterator[Line | Refused]:
    folder, name = str(path.parent), path.parent.absolute().name
    with counted("reading", unit="rows") as progress:
        for number, record in read_records(path, required=REQUIRED, known=(*REQUIRED, *OPTIONAL)):
            where = f"{path}: row {number}"
            split, source = (text_in(where, record, column) for column in OPTIONAL)
            if split and split not in (*SPLITS, UNLABELLED):
                raise BadDelivery(
                    f"{where}, field split: {short(split)} is unknown; use {', '.join((*SPLITS, UNLABELLED))} or leave it blank"
                )
            yield _row(folder, record.get("path"), label=record.get("label"), split=split, source=source or name)
            if number % CHUNK == 0:
                progress.add(CHUNK)


def read_records(path: Path, *, required: Sequence[str], known: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the rows of a table as `read_rows` does.

    Raises:
        BadDelivery: the table cannot be read.
    """
    try:
        yield from read_rows(path, required=required, known=known)
    except BadTable as error:
        raise BadDelivery(str(error)) from None


def text_in(where: str, record: Mapping[str, Any], name: str) -> str:
    """The text in a column of a row, as `text_of` gives it.

    Raises:
        BadDelivery: the value is not a text.
    """
    try:
        return text_of(where, record, name)
    except BadTable as error:
        raise BadDelivery(str(error)) from None


def _row(folder: str, path: Any, *, label: Any, split: str, source: str) -> Line | Refused:
    text, fault = as_text(label)
    path, reason = as_text(path)
    reason = reason or _bad_path(folder, path)
    if reason or fault:
        given = short(label) if fault else fold(text)
        return Refused(_utf8(path), _utf8(given), _utf8(source), "path" if reason else "label", reason or fault)
    return Line(path, text, split, _utf8(source))


def _spelling(known: KnownLabels, label: str) -> tuple[str, str]:
    """The label as it is stored, and the reason why it cannot be used, or ""; an existing label always can."""
    label = known.spelt(label)
    return _utf8(label), "" if label in known.labels else labels.fault(label)


def _utf8(text: str) -> str:
    return text.encode(errors="replace").decode()


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
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.ENOTDIR):
            return f"cannot be read ({error.strerror})"
        hint = "; separate folders by /" if "\\" in path else "; give a path in the delivery" if "://" in path else ""
        return f"no such file{hint}"
    if not real.startswith(os.path.join(root, "")):
        return "leaves the folder of the delivery through a link"
    return "" if stat.S_ISREG(mode) else "is not a file"


@functools.lru_cache
def _real(folder: str) -> str:
    return os.path.realpath(folder, strict=True)
