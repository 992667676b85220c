"""Garbage: files that no data version needs any more. Finds them and frees their disk space.

Every version that the history or a tag names keeps all its objects. Only what this workspace wrote is freed: in the cache
the files of versions that nothing names any more, and unfinished ones. Objects that a user or another project added there
stay, and so does the whole cache if it lies elsewhere. The remote is left alone, because other workspaces may share it. Runs
read copies under versions/, so the caller holds every lock of the workspace.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from durable import sync
from flows.data.history import descent
from flows.data.pointer import READY
from flows.data.versions import DataVersions
from flows.errors import InputError
from flows.workspace import Workspace
from flows.workspace.files import files_below

COPY = re.compile(r"[0-9a-f]{32}")  # name of a copy under versions/


@dataclass(frozen=True)
class Unused:
    """A file or folder that can be removed.

    why: the reason. bytes: disk space that its removal frees; a file with another hard link frees none.
    """

    path: Path
    why: str
    bytes: int


def find_unused(versions: DataVersions) -> list[Unused]:
    """Cache objects, copies and unfinished folders that no version needs, the copies first.

    Raises:
        InputError: one of the folders lies outside the workspace, so others may use it.
        CorruptObject, MissingFromRemote: the listing of a version is gone, so its objects are not known.
    """
    found = [*_copies(versions), *_staging(versions), *_cached(versions)]
    freed = _freed(path for path, _ in found)
    return [Unused(path, why, size) for (path, why), size in zip(found, freed, strict=True)]


def free(unused: Iterable[Unused]) -> None:
    """Removes them. A kill leaves the rest for the next call, and never a partial folder that is marked READY."""
    for each in unused:
        if each.path.is_dir():
            (each.path / READY).unlink(missing_ok=True)
            sync(each.path)
            shutil.rmtree(each.path)
        else:
            each.path.unlink(missing_ok=True)


def _copies(versions: DataVersions) -> list[tuple[Path, str]]:
    """Copies under versions/, except for the selected version and the versions that it was made from."""
    selected = versions.selected()
    kept = descent(selected, versions.known_entries()) if selected else []
    place = _own(versions.workspace.versions, versions.workspace)
    folders = [path for path in sorted(place.iterdir()) if COPY.fullmatch(path.name) and not path.is_symlink()]
    unmarked = [(path, "unfinished copy") for path in folders if not (path / READY).exists()]
    return unmarked + [(path, "copy that no run reads") for path in folders
                       if path.name not in kept and (path / READY).exists()]  # fmt: skip


def _staging(versions: DataVersions) -> list[tuple[Path, str]]:
    place = _own(versions.workspace.state / "staging", versions.workspace)
    return [(path, "abandoned staging") for path in sorted(place.glob("*"))]


def _cached(versions: DataVersions) -> list[tuple[Path, str]]:
    """Files of former versions in the cache that no version needs, and those that a killed command did not finish."""
    with versions.store.objects() as objects:
        cache = _own(objects.cache, versions.workspace)
        needed = {path for version in versions.known() for path in objects.paths(objects.listing(version))}
        former = {path for listing in objects.former() for path in objects.paths(listing)}
        freed = [path for path in former - needed if path.exists()] + list(cache.glob("*/.*.part"))
        return [(path, "cached file of no version") for path in sorted(freed)]


def _own(folder: Path, workspace: Workspace) -> Path:
    """The folder, if it lies in the workspace.

    Raises:
        InputError: it lies elsewhere.
    """
    if not workspace.holds(folder):
        raise InputError(
            f"{folder} lies at {folder.resolve()}, outside the workspace {workspace.root}, and others may use it; nothing "
            "was freed: keep it in the workspace (DVC's cache: `dvc config --local --unset cache.dir`, or in .dvc/config)"
        )
    return folder


def _freed(paths: Iterable[Path]) -> list[int]:
    """Bytes freed with each path when all are removed in this order: a file counts where its last hard link goes."""
    removed: Counter[tuple[int, int]] = Counter()
    freed = []
    for path in paths:
        size = 0
        for file in files_below(path) if path.is_dir() else [path]:
            info = file.stat()
            removed[info.st_dev, info.st_ino] += 1
            size += info.st_size if removed[info.st_dev, info.st_ino] == info.st_nlink else 0
        freed.append(size)
    return freed
