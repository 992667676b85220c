"""Photos packed into immutable tar files.

One tar of half a gigabyte instead of tens of thousands of files makes adding, checking out and pulling a version 7 to
50 times quicker. Uncompressed, so that a photo is one seek away and any tar reads it. Named by sha256: the same photos
give the same shard.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from models.data.manifest import read_photo
from serving.durable import sync

__all__ = ["MAX_BYTES", "Placed", "pack", "read_photo"]

MAX_BYTES = 512 * 1024 * 1024
END = bytes(2 * tarfile.BLOCKSIZE)  # two empty blocks close a tar
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
class Placed:
    """Where a photo lies: the shard's sha256, then offset and size in bytes."""

    shard: str
    offset: int
    size: int


def pack(photos: Iterable[tuple[str, bytes]], *, folder: Path, max_bytes: int = MAX_BYTES) -> dict[str, Placed]:
    """Write `photos` (id, bytes), in this order, into shards in `folder`, each fsynced; where every id lies.

    One photo is in memory at a time. A shard holds at most `max_bytes`, but always at least one photo.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places: dict[str, Placed] = {}
    shard: _Shard | None = None
    for photo_id, photo in photos:
        if shard is not None and not shard.has_room(photo, max_bytes=max_bytes):
            places |= shard.close()
            shard = None
        if shard is None:
            shard = _Shard.open(folder)
        shard.add(photo_id, photo)
    if shard is not None:
        places |= shard.close()
        sync(folder)
    return places


@dataclass
class _Shard:
    """A tar under construction; its hash is known, and its name given, when it is closed."""

    path: Path
    file: BinaryIO
    offsets: dict[str, tuple[int, int]] = field(default_factory=dict)
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    size: int = 0

    @classmethod
    def open(cls, folder: Path) -> _Shard:
        path = folder / ".open.tar"
        return cls(path=path, file=path.open("wb"))

    def has_room(self, photo: bytes, *, max_bytes: int) -> bool:
        """Whether the finished tar with `photo` would be at most that large: header, padding and end included."""
        padded = len(photo) + -len(photo) % tarfile.BLOCKSIZE
        return self.size + tarfile.BLOCKSIZE + padded + len(END) <= max_bytes

    def add(self, photo_id: str, photo: bytes) -> None:
        # TarInfo's defaults are what we want written: time 0, user 0, group 0, mode 0644.
        info = tarfile.TarInfo(f"{photo_id}.{_extension(photo)}")
        info.size = len(photo)
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        self.offsets[photo_id] = (self.size, len(photo))
        self._write(photo + bytes(-len(photo) % tarfile.BLOCKSIZE))

    def close(self) -> dict[str, Placed]:
        self._write(END)
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        name = self.digest.hexdigest()
        os.replace(self.path, self.path.with_name(f"{name}.tar"))
        return {photo_id: Placed(name, offset, size) for photo_id, (offset, size) in self.offsets.items()}

    def _write(self, content: bytes) -> None:
        self.file.write(content)
        self.digest.update(content)
        self.size += len(content)


def _extension(photo: bytes) -> str:
    """From the bytes and not from the supplier's name, so that a shard depends on its photos alone."""
    return next((name for magic, name in MAGIC.items() if photo.startswith(magic)), "img")
