"""Bytes that are on the disk when a function returns."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.errors import DiskFull


def write(path: Path, data: bytes) -> None:
    """Write a whole file and wait until it is on the disk."""
    path.write_bytes(data)
    sync(path)


def overwrite(path: Path, data: bytes) -> None:
    """Write a file so that a reader or a power cut sees it whole or as it was; a kill may leave a .part beside it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        write(temporary, data)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def disk_full_named(path: Path) -> Iterator[None]:
    """Say DiskFull where the system says ENOSPC, or EDQUOT, for writes to `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no space left at {path}; nothing half-written remains: free some and try again") from None
        raise
