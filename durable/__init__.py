"""Writes and links files so that a kill or a power cut leaves them complete or unchanged; hashes of files."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO


def write(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Writes a file and waits until it is on the disk; `mode`: permissions that a new file is made with, less the umask."""
    with open(path, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        file.write(data)
    sync(path)


def overwrite(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Replaces a file; a reader or a power cut finds it complete or unchanged. A kill may leave a .part beside it."""
    temporary = _beside(path)
    try:
        write(temporary, data, mode=mode)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def link(source: Path, target: Path) -> None:
    """Makes `target` a hard link to `source`, or a copy, which appears complete, if the file system makes no such link.

    File systems refuse in many ways (EPERM, ENOSYS, EIO, EXDEV, ENOTSUP), and ext4 after 65,000 links to a file (EMLINK).

    Raises:
        FileExistsError: `target` exists.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        part = _beside(target)
        try:
            shutil.copyfile(source, part)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def md5(path: Path) -> str:
    """MD5 of a file's bytes, in hex; DVC names its objects by it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a file beside the path, fsynced and renamed to it at the end; on any error the former file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with fresh.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        sync(path.parent)
    finally:
        fresh.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """Name of the temporary file that becomes `path`; `sweep` of the flows removes those of killed processes."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
