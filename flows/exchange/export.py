"""Exports label issues with their photos for another tool."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from flows.data.versions import DataVersions
from flows.errors import InputError
from flows.exchange.formats import format_named
from flows.exchange.suspects import suspects, worst
from flows.review.photos import read_photos
from flows.review.pictures import as_jpeg
from flows.review.suggestions import read_suggestions
from flows.workspace import Workspace
from models.progress import Progress

SIDE_PX = 1024  # of the exported pictures


@dataclass(frozen=True)
class Exported:
    """Result of an export. after: what to do with the folder."""

    folder: str
    format: str
    version: str
    photos: int
    with_suggestion: int
    after: str


@dataclass(frozen=True)
class Wanted:
    """The label issues to export: those of a data version, of one given label or suggestion ("": any), at most `limit` (0: all)."""

    version: str = "selected"
    given: str = ""
    suggestion: str = ""
    limit: int = 1000


def export(workspace: Workspace, out: Path, format: str, *, wanted: Wanted) -> Exported:
    """Writes the folder `out`: label issues, worst first, and their photos as JPEGs; complete, or not there after a kill.

    Raises:
        InputError: `out` exists, or the format or class is unknown.
        UnknownVersion: there is no such data version.
    """
    chosen = format_named(format)
    if out.exists():
        raise InputError(f"{out} exists; name a new folder")
    versions = DataVersions(workspace)
    version = versions.resolve(wanted.version)
    photos = read_photos(versions.materialise(version), version=version)
    found = read_suggestions(photos, workspace.runs / "stages")
    rows = worst(photos, found, given=wanted.given, suggestion=wanted.suggestion, limit=wanted.limit)
    listed = suspects(photos, found, rows)
    folder = out.with_name(f".{out.name}.{os.getpid()}") / out.name  # the formats see the final name
    progress = Progress("exporting", len(rows))
    try:
        (folder / "photos").mkdir(parents=True)
        for row, each in zip(rows, listed, strict=True):
            (folder / each.file).write_bytes(as_jpeg(photos.read(row), SIDE_PX))
            progress.add(1)
        progress.done()
        chosen.write(folder, listed)
        folder.rename(out)
    finally:
        shutil.rmtree(folder.parent, ignore_errors=True)
    return Exported(str(out), format, version, len(listed), sum(bool(each.suggested) for each in listed), chosen.after)
