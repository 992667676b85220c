"""Folders of files that survive a kill or a power cut whole or not at all; for single files see `durable`.

DVC and pyarrow never fsync, so a power cut can leave a file with its final name but no content. Files that a later step
trusts by name are fsynced here or by `durable` first.
"""

from __future__ import annotations

import errno
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from durable import sync
from flows.errors import DiskFull

FULL = ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE")  # no space for a page, and for the memory that connections share


def sweep(folder: Path) -> None:
    """Removes the temporary files that `overwrite` left in the folder when its process was killed."""
    for part in folder.glob(".*.part"):
        writer = part.suffixes[-2:][0].strip(".").partition("-")[0]
        if writer.isdecimal() and not Path("/proc", writer).exists():
            part.unlink(missing_ok=True)


def sync_tree(folder: Path) -> None:
    """Fsyncs every file below `folder`, then the folders from the innermost to `folder`."""
    for path in files_below(folder):
        sync(path)
    for path in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        sync(path)
    sync(folder)


def files_below(folder: Path) -> list[Path]:
    """Every file below `folder`, sorted; symbolic links to files count as files."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


@contextmanager
def or_disk_full(doing: str, *, leaving: Path | None = None) -> Iterator[None]:
    """Raises DiskFull for a full disk. `leaving`, a folder of partly written files, is removed on any error."""
    try:
        yield
    except BaseException as error:
        if leaving is not None:
            shutil.rmtree(leaving, ignore_errors=True)
        cause = out_of_space(error)
        if cause is None:
            raise
        raise DiskFull(f"no space left while {doing} ({cause}); free some space and run it again") from error


def out_of_space(error: BaseException | None) -> BaseException | None:
    """The error of a full disk, quota or file size limit that `error` is or wraps; None if there is none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return error
        if (
            isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorname", "") in FULL
        ):  # ours, and DVC's databases
            return error
        error = error.__cause__ or error.__context__
    return None
