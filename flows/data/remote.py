"""The remote: a second copy of every object, which other machines reach too."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from durable import sync
from flows.errors import MissingFromRemote
from models.progress import Progress

ABANDONED_S = 3600  # age from which a temporary file in a remote counts as left by a killed command


@dataclass(frozen=True)
class Remote:
    """A second copy of every object: a folder in one of DVC's file systems."""

    fs: Any
    root: str

    @property
    def is_local(self) -> bool:
        """True if objects can be hashed in place, without a transfer."""
        return bool(self.fs.protocol == "local")

    def path(self, md5: str) -> str:
        """Path of the object, which need not exist."""
        return str(self.fs.join(self.root, md5[:2], md5[2:]))

    def read(self, md5: str) -> bytes | None:
        """Bytes of a small object, not verified; None if it does not exist."""
        if not self.fs.exists(self.path(md5)):
            return None
        with self.fs.open(self.path(md5), "rb") as file:
            return bytes(file.read())

    def sizes(self, md5s: Iterable[str]) -> list[int]:
        """Bytes of each object, asked for side by side; 0 for one that does not exist or whose size the remote does not tell."""
        found = self.fs.info([self.path(md5) for md5 in md5s], return_exceptions=True)
        return [0 if isinstance(each, Exception) else int(each.get("size") or 0) for each in found]

    def get(self, md5: str, target: Path, *, progress: Progress | None = None) -> None:
        """Copies the object to `target`, not verified; `progress` counts its bytes."""
        moved = Moved(progress)
        self.fs.get_file(self.path(md5), str(target), callback=moved.callback())
        moved.count(target.stat().st_size)

    def put(self, md5: str, source: Path, *, progress: Progress | None = None) -> None:
        """Stores `source` under its hash; an existing object is replaced. `progress` counts its bytes."""
        moved = Moved(progress)
        path = self.path(md5)
        part = f"{path}.{uuid4().hex}.part"  # another workspace may be writing the same object
        try:
            self.fs.makedirs(self.fs.parent(path), exist_ok=True)
            if self.is_local:  # DVC would write under another name first, and leave that file if it fails
                shutil.copyfile(source, part)
            else:
                self.fs.put_file(str(source), part, callback=moved.callback())
            self._sync(part)
            self.fs.move(part, path)
            self._sync(self.fs.parent(path))
            moved.count(source.stat().st_size)
        except OSError as error:  # its cause distinguishes a full disk from an unreachable remote
            with suppress(OSError):
                self.fs.remove(part)
            raise MissingFromRemote(
                f"cannot write {path} ({error}); check the remote, then run the command again"
            ) from error

    def remove(self, md5: str) -> None:
        """Deletes the object, if it exists.

        Raises:
            MissingFromRemote: the remote refuses, or cannot be reached.
        """
        path = self.path(md5)
        try:
            if self.fs.exists(path):
                self.fs.remove(path)
                self._sync(self.fs.parent(path))
        except OSError as error:
            raise MissingFromRemote(
                f"cannot delete {path} ({error}); check the remote, then run the command again"
            ) from error

    def _sync(self, path: str) -> None:
        if self.is_local:
            sync(Path(path))

    def sweep(self, objects: Iterable[str]) -> None:
        """Removes the temporary files beside these objects that killed writes, ours or DVC's, have left.

        Another workspace may be writing beside them, so recent files stay.
        """
        if self.is_local:
            for folder in {Path(self.path(md5)).parent for md5 in objects}:
                for leftover in (*folder.glob(".*.tmp"), *folder.glob("*.part")):
                    with suppress(FileNotFoundError):
                        if time.time() - leftover.stat().st_mtime > ABANDONED_S:
                            leftover.unlink()


class Moved:
    """Bytes of one file on their way, as its file system reports them; some report them only at the end."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress, self.bytes = progress, 0

    def callback(self) -> Any:
        """The callback that fsspec's file systems take."""
        from fsspec.callbacks import Callback

        return Callback(hooks={"moved": lambda size, value, **rest: self.count(value)})

    def count(self, moved: int) -> None:
        """Counts what was moved since the last call; `moved` bytes in all."""
        if self.progress and moved > self.bytes:
            self.progress.add(moved - self.bytes)
            self.bytes = moved
