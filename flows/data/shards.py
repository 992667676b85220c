"""Shards: photos packed into immutable tar files.

One tar of 128 MB instead of thousands of files makes adding, checking out and pulling a version 7 to 50 times faster.
The tars are not compressed, so a photo is one seek away and any tar program reads them. They are named by their
SHA-256: the same photos give the same shard.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from array import array
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from durable import sync
from models.data.manifest import read_photo

__all__ = ["MAX_BYTES", "Location", "Packed", "pack", "read_photo"]

MAX_BYTES = 128 * 1024 * 1024  # small enough to hash and copy a few gigabytes on all cores, one shard per core
PIECE = 1024 * 1024  # bytes written and hashed at a time; large, to interrupt the decoding threads less often
END = bytes(2 * tarfile.BLOCKSIZE)  # a tar ends with two empty blocks
MAGIC = {
    b"\xff\xd8": "jpg",
    b"\x89PNG": "png",
    b"RIFF": "webp",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tif",
    b"MM\0*": "tif",
}


@dataclass(frozen=True, slots=True)
class Location:
    """Location of a photo: the shard's SHA-256, and offset and size in bytes."""

    shard: str
    offset: int
    size: int


@dataclass(frozen=True)
class Packed:
    """Shards (SHA-256 to MD5) and the locations of N photos in them, in the order in which the photos came.

    shard (N,): position in `shards`; offset (N,), size (N,): bytes.
    """

    shards: dict[str, str]
    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    size: NDArray[np.int32]


def pack(photos: Iterable[tuple[str, bytes]], *, folder: Path, max_bytes: int = MAX_BYTES) -> Packed:
    """Packs `photos` (id, bytes) in their order into shards in `folder`; each is fsynced while the next is written.

    Holds one photo and one PIECE in memory. A shard has at most `max_bytes` bytes, but at least one photo.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shard, offset, size = array("i"), array("q"), array("i")
    closing: list[Future[tuple[str, str]]] = []
    with ThreadPoolExecutor(1) as disk:
        tar: _Shard | None = None
        for photo_id, photo in photos:
            if tar is not None and not tar.has_room(photo, max_bytes=max_bytes):
                closing.append(disk.submit(tar.close))
                tar = None
            if tar is None:
                tar = _Shard.open(folder / f".open-{len(closing)}.tar")
            shard.append(len(closing))
            offset.append(tar.add(photo_id, photo))
            size.append(len(photo))
        if tar is not None:
            closing.append(disk.submit(tar.close))
    shards = dict(each.result() for each in closing)
    sync(folder)
    return Packed(shards, np.array(shard, np.int32), np.array(offset, np.int64), np.array(size, np.int32))


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)


@dataclass
class _Shard:
    """A tar under construction. Its hashes, and so its name, are known once it is closed."""

    path: Path
    file: BinaryIO
    sha256: Any = field(default_factory=hashlib.sha256)
    md5: Any = field(default_factory=_md5)
    size: int = 0
    waiting: bytearray = field(default_factory=bytearray)

    @classmethod
    def open(cls, path: Path) -> _Shard:
        return cls(path=path, file=path.open("wb"))

    def has_room(self, photo: bytes, *, max_bytes: int) -> bool:
        """True if the finished tar with `photo`, including header, padding and end, has at most `max_bytes` bytes."""
        padded = len(photo) + -len(photo) % tarfile.BLOCKSIZE
        return self.size + tarfile.BLOCKSIZE + padded + len(END) <= max_bytes

    def add(self, photo_id: str, photo: bytes) -> int:
        """Appends the photo; returns its offset."""
        # TarInfo's defaults make the bytes reproducible: time 0, user 0, group 0, mode 0644.
        info = tarfile.TarInfo(f"{photo_id}.{_extension(photo)}")
        info.size = len(photo)
        header = info.tobuf(tarfile.USTAR_FORMAT)
        offset = self.size + len(header)
        self._write(header, photo, bytes(-len(photo) % tarfile.BLOCKSIZE))
        return offset

    def close(self) -> tuple[str, str]:
        """Writes the end of the tar, fsyncs and renames it; returns its SHA-256 and MD5."""
        self._write(END)
        self._flush()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        name = self.sha256.hexdigest()
        os.replace(self.path, self.path.with_name(f"{name}.tar"))
        return name, self.md5.hexdigest()

    def _write(self, *contents: bytes) -> None:
        for content in contents:
            self.waiting += content
            self.size += len(content)
        if len(self.waiting) >= PIECE:
            self._flush()

    def _flush(self) -> None:
        self.file.write(self.waiting)
        self.sha256.update(self.waiting)
        self.md5.update(self.waiting)
        self.waiting.clear()


def _extension(photo: bytes) -> str:
    """Extension by the photo's bytes and not by the supplier's name, so that a shard depends on its photos alone."""
    return next((name for magic, name in MAGIC.items() if photo.startswith(magic)), "img")
