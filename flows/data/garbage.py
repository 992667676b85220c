"""What no data version needs any more: found, and freed.

Every version that the history or a tag names keeps all its objects. The remote is left alone: other workspaces may share
it. A run reads its copy under versions/ while it holds the lock of the workspace, so nothing here can take it away.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from durable import sync
from flows.data.history import descent
from flows.data.pointer import READY
from flows.data.versions import DataVersions
from flows.workspace.files import files_below


@dataclass(frozen=True)
class Unused:
    """A file or folder that can go: why, and how many bytes of disk that frees (files with other names free none)."""

    path: Path
    why: str
    bytes: int


def find_unused(versions: DataVersions) -> list[Unused]:
    """Cache objects, copies and unfinished folders that no version needs, the copies first.

    Raises:
        CorruptObject, MissingFromRemote: the listing of a version is gone, so nobody knows what it needs.
    """
    found = [*_copies(versions), *_staging(versions), *_cached(versions)]
    freed = _freed(path for path, _ in found)
    return [Unused(path, why, size) for (path, why), size in zip(found, freed, strict=True)]


def free(unused: Iterable[Unused]) -> None:
    """Remove them. A kill in between leaves the rest for the next time, and no folder that looks whole and is not."""
    for each in unused:
        if each.path.is_dir():
            (each.path / READY).unlink(missing_ok=True)
            sync(each.path)
            shutil.rmtree(each.path)
        else:
            each.path.unlink(missing_ok=True)


def _copies(versions: DataVersions) -> list[tuple[Path, str]]:
    """Copies under versions/, except those of the selected version and of the versions that it was made from."""
    selected = versions.selected()
    kept = descent(selected, versions.log()) if selected else []
    folders = sorted(path for path in versions.workspace.versions.iterdir() if path.is_dir())
    unmarked = [(path, "unfinished copy") for path in folders if not (path / READY).exists()]
    return unmarked + [(path, "copy that no run reads") for path in folders
                       if path.name not in kept and (path / READY).exists()]  # fmt: skip


def _staging(versions: DataVersions) -> list[tuple[Path, str]]:
    return [(path, "abandoned staging") for path in sorted((versions.workspace.state / "staging").glob("*"))]


def _cached(versions: DataVersions) -> list[tuple[Path, str]]:
    with versions.store.objects() as objects:
        needed = {path for version in versions.known() for path in objects.paths(objects.listing(version))}
        return [(path, "in the cache, of no version") for path in files_below(objects.cache) if path not in needed]


def _freed(paths: Iterable[Path]) -> list[int]:
    """Bytes that go with each path when all are removed in this order: a file's, where its last name is among them."""
    gone: Counter[tuple[int, int]] = Counter()
    freed = []
    for path in paths:
        size = 0
        for file in files_below(path) if path.is_dir() else [path]:
            at = file.stat()
            gone[at.st_dev, at.st_ino] += 1
            size += at.st_size if gone[at.st_dev, at.st_ino] == at.st_nlink else 0
        freed.append(size)
    return freed
