"""Recognises all photos of a folder of any size and writes one table; a killed run resumes where it stopped."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from flows.endpoint.parts import Parts
from flows.errors import InputError
from models.data.records import read_rows
from pixels import BadPhoto
from serving import LocalRecognizer, Recognition, Recognizer

log = logging.getLogger("cleanshelf")
ROWS = 2000  # rows of a part: what a kill may lose, and a row group of the table
SCHEMA = pa.schema(
    {
        "path": pa.string(),  # relative to the folder
        "label": pa.string(),
        "probability": pa.float32(),
        "score": pa.float32(),
        "known": pa.bool_(),
        "labels": pa.list_(pa.string()),
        "probabilities": pa.list_(pa.float32()),
        "model_version": pa.int64(),  # null if an ONNX file answered
        "data_version": pa.string(),
        "error": pa.string(),  # reason why there is no answer, else null
    }
)


@dataclass
class Summary:
    """Counts of a run; `versions` has the number of answers of each model version, or of "file" for an ONNX file."""

    photos: int = 0
    known: int = 0
    bad: int = 0
    resumed: int = 0  # photos, among `photos`, that earlier runs had done
    seconds: float = 0.0
    versions: dict[str, int] = field(default_factory=dict)

    def add(self, known: bool | None, version: int | None, error: str | None) -> None:
        """Counts one row of the table."""
        self.photos += 1
        self.known += bool(known)
        self.bad += error is not None
        if error is None:
            name = str(version or "file")
            self.versions[name] = self.versions.get(name, 0) + 1


def recognise_folder(
    folder: Path,
    out: Path,
    *,
    recognizer: Recognizer | LocalRecognizer,
    model: str,
    progress: Callable[[int], None] = lambda done: None,
    rows: int = ROWS,
) -> Summary:
    """Recognises every file below `folder` and writes the table `out`; a bad photo is a row with a reason.

    Args:
        model: identifies who answers; a later run with the same `out` resumes only if it is the same.
        progress: called with the number of photos done, including those of earlier runs.
        rows: photos of a part.

    Raises:
        InputError: `folder` is not a folder, or `out` exists already or was begun with another model or folder.
        WorkspaceBusy, DiskFull, ServingError: finished parts are kept, and the same call resumes from them.
    """
    check(folder, out)
    started, summary = time.monotonic(), Summary()
    with Parts.of(out, SCHEMA, plan={"model": model, "folder": printable(str(folder.absolute()))}) as parts:
        done = _done(parts, summary)
        progress(summary.photos)
        if not out.exists():
            todo = (path for path in photos_below(folder) if _digest(printable(path)) not in done)
            _ask(todo, folder, recognizer=recognizer, parts=parts, summary=summary, progress=progress, rows=rows)
        parts.join()
    summary.seconds = time.monotonic() - started
    return summary


def check(folder: Path, out: Path) -> None:
    """Checks that there is such a folder and that a table can be written to `out`, before anything else starts.

    Raises:
        InputError: there is none, or it cannot.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name one, or omit --out to ask about single photos")
    Parts(out, SCHEMA).check()


def photos_below(folder: Path, inside: str = "") -> Iterator[str]:
    """Paths of the files below `folder`, relative to it, always in the same order.

    Hidden files are skipped and links to folders are not followed. Memory holds the names of one folder per level.
    """
    try:
        with os.scandir(folder / inside) as entries:
            found = sorted((each.name, _kind(each)) for each in entries if not each.name.startswith("."))
    except OSError:
        if not inside:
            raise
        yield inside  # reading it fails as well, and the error becomes its row
        return
    for name, kind in found:
        path = os.path.join(inside, name)
        if kind == "folder":
            yield from photos_below(folder, path)
        elif kind == "file":
            yield path


def printable(path: str) -> str:
    """A path as the table shows it: bytes that are not UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    is_broken_link = entry.is_symlink() and not os.path.exists(entry.path)
    return "file" if entry.is_file() or is_broken_link else "other"  # a pipe would be read forever


def _ask(
    todo: Iterable[str],
    folder: Path,
    *,
    recognizer: Recognizer | LocalRecognizer,
    parts: Parts,
    summary: Summary,
    progress: Callable[[int], None],
    rows: int,
) -> None:
    """Writes the rows of `todo`, part by part."""
    pending: deque[str] = deque()

    def paths() -> Iterator[str]:
        for path in todo:
            pending.append(path)
            yield os.path.join(folder, path)

    ready: list[dict[str, Any]] = []
    for answer in recognizer.stream(paths()):
        row = _row(printable(pending.popleft()), answer)
        _log_other_version(summary, row)
        summary.add(row["known"], row["model_version"], row["error"])
        ready.append(row)
        if len(ready) == rows:
            parts.write(ready)
            ready = []
        progress(summary.photos)
    if ready:
        parts.write(ready)


def _row(path: str, answer: Recognition | BadPhoto) -> dict[str, Any]:
    empty = dict.fromkeys(SCHEMA.names)
    if isinstance(answer, BadPhoto):
        return {**empty, "path": path, "error": printable(answer.reason)}
    label, probability = answer.best or (None, None)
    return {
        **empty,
        "path": path,
        "label": label,
        "probability": probability,
        "score": answer.score,
        "known": answer.known,
        "labels": [label for label, _ in answer.ranked],
        "probabilities": [p for _, p in answer.ranked],
        "model_version": answer.model_version,
        "data_version": answer.data_version,
    }


def _log_other_version(summary: Summary, row: Mapping[str, Any]) -> None:
    """Logs if another model version starts to answer in the middle of a run; the run continues."""
    version = str(row["model_version"] or "file")
    if row["error"] is None and summary.versions and version not in summary.versions:
        before = ", ".join(f"{count} by version {former}" for former, count in summary.versions.items())
        log.warning("model version %s answers from photo %d on; answers before: %s", version, summary.photos, before)


def _done(parts: Parts, summary: Summary) -> _Paths:
    """The photos that have a row already; they are counted in `summary`."""
    digests: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]
    if parts.out.exists():  # a run was killed after it had written the table
        for _, row in read_rows(parts.out, required=("known", "model_version", "error")):
            known, version = str(row["known"]).lower() == "true", int(row["model_version"] or 0)
            summary.add(known, version or None, row["error"] or None)
    else:
        for columns in parts.columns(["path", "known", "model_version", "error"]):
            digests.append(np.fromiter(map(_digest, columns.pop("path")), np.uint64))
            for counted in zip(*columns.values(), strict=True):
                summary.add(*counted)
    summary.resumed = summary.photos
    return _Paths(np.sort(np.concatenate(digests)))


@dataclass(frozen=True)
class _Paths:
    """A set of paths as ascending 8-byte digests; for a million paths the chance of a collision is 1 in 37 million."""

    digests: NDArray[np.uint64]

    def __contains__(self, digest: int) -> bool:
        index = int(np.searchsorted(self.digests, np.uint64(digest)))
        return index < len(self.digests) and int(self.digests[index]) == digest


def _digest(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "big")
