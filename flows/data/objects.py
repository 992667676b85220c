"""Objects, which are named by their hash: verified, stored and fetched.

DVC checks out a corrupt or empty cache object without an error and calls the result clean. So no object is trusted by
its name here: each is hashed before it is used, and fetched again from the remote if its hash differs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import durable
from durable import link, overwrite, sync
from flows.data.remote import Remote
from flows.errors import CorruptObject, MissingFromRemote
from flows.live import counted
from flows.workspace.files import files_below, sync_tree
from models.progress import MB, Progress

VERSIONED = {"VERSION.json", "index.parquet", "labels.parquet"}  # files of every data version


@dataclass(frozen=True)
class HashCache:
    """MD5 of files, cached for shards: they are large and immutable, so each is read once per host.

    A file is identified by device, inode, size and modification time, so all hard links of a shard share one reading.
    """

    path: Path
    known: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> HashCache:
        """The cache that earlier processes wrote to `path`; empty if there is none or it is damaged."""
        try:
            return cls(path, dict(json.loads(path.read_bytes())))
        except (OSError, ValueError, TypeError):
            return cls(path)

    def md5(self, path: Path, *, once: bool = False) -> str:
        """MD5 of the bytes of `path`; with `once`, from the cache unless the file has changed since."""
        if not once:
            return durable.md5(path)
        key = _key(path)
        if key not in self.known:
            self._note({key: durable.md5(path)})
        return self.known[key]

    def read_ahead(self, paths: Iterable[Path]) -> None:
        """Hashes those of the files that exist and are not cached, on all cores."""
        unknown = {key: path for path in paths if path.is_file() and (key := _key(path)) not in self.known}
        sizes = [path.stat().st_size for path in unknown.values()]
        with ThreadPoolExecutor(os.cpu_count()) as pool, counted("checking", sum(sizes), unit=MB) as progress:
            for key, found, size in zip(unknown, pool.map(durable.md5, unknown.values()), sizes, strict=True):
                self._note({key: found})
                progress.add(size)

    def add(self, md5s: Mapping[Path, str]) -> None:
        """Adds files that were hashed while they were written."""
        self._note({_key(path): md5 for path, md5 in md5s.items()})

    def _note(self, found: Mapping[str, str]) -> None:
        self.known.update(found)
        overwrite(self.path, json.dumps(self.known).encode())


@dataclass(frozen=True)
class Listing:
    """The files of one data version, path in its folder to MD5. The listing's own MD5 is the version's id."""

    files: Mapping[str, str]

    @property
    def content(self) -> bytes:
        """The listing as DVC stores it; the id is the MD5 of these bytes."""
        rows = [{"md5": self.files[name], "relpath": name} for name in sorted(self.files)]
        return json.dumps(rows, sort_keys=True).encode()

    @property
    def id(self) -> str:
        """Id of the version, 32 hex digits."""
        return hashlib.md5(self.content, usedforsecurity=False).hexdigest()

    def without(self, name: str) -> Listing:
        """The same listing without the file `name`."""
        return Listing({key: md5 for key, md5 in self.files.items() if key != name})

    @classmethod
    def parse(cls, content: bytes, *, name: str) -> Listing:
        """The listing in `content`, the bytes of the object `name`.

        Raises:
            CorruptObject: it is not a listing, or a path in it leaves the folder.
        """
        try:
            files = {str(row["relpath"]): str(row["md5"]) for row in json.loads(content)}
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptObject(
                f"{name} is not a list of files ({error}); restore it from another copy of the version"
            ) from None
        for path in map(PurePosixPath, files):
            if path.is_absolute() or ".." in path.parts:
                raise CorruptObject(
                    f"{name} lists {path}, which is outside its folder; restore it from another copy of the version"
                )
        return cls(files)

    @classmethod
    def of(cls, folder: Path, *, hashes: HashCache) -> Listing:
        """Listing of the files that lie in `folder` now."""
        names = {path.relative_to(folder).as_posix(): path for path in files_below(folder)}
        hashes.read_ahead(path for name, path in names.items() if is_shard(name))
        return cls({name: hashes.md5(path, once=is_shard(name)) for name, path in names.items()})


def is_shard(name: str) -> bool:
    """True if the file `name` of a version is a shard: large and immutable."""
    return name.startswith("shards/")


@dataclass(frozen=True)
class Objects:
    """DVC's cache in the folder `cache` (its files/md5), backed by `remote`."""

    cache: Path
    remote: Remote
    hashes: HashCache

    def path(self, md5: str) -> Path:
        """Path of the object in the cache; it need not exist."""
        return self.cache / md5[:2] / md5[2:]

    def paths(self, listing: Listing) -> list[Path]:
        """Paths in the cache of the objects of a version, including its listing."""
        return [self.path(md5) for md5 in (*listing.files.values(), f"{listing.id}.dir")]

    def num_bytes(self, md5s: Iterable[str]) -> int:
        """Bytes of these objects in the cache."""
        return sum(self.path(md5).stat().st_size for md5 in md5s)

    def read_ahead(self, listing: Listing) -> None:
        """Hashes the cached shards of a version that were not read before, on all cores."""
        self.hashes.read_ahead(self.path(md5) for name, md5 in listing.files.items() if is_shard(name))

    def drop_corrupt(self, listing: Listing) -> None:
        """Removes corrupt cache objects: DVC would link them instead of the files that are being added."""
        for name, md5 in {**listing.files, "": f"{listing.id}.dir"}.items():
            if not self.is_good(self.path(md5), md5, name=name):
                self.path(md5).unlink(missing_ok=True)

    def bring_in(self, folder: Path, listing: Listing) -> None:
        """Links the files of `folder` into the cache, and writes the listing there."""
        for name, md5 in listing.files.items():
            if not self.path(md5).exists():
                link(folder / name, self.path(md5))
                self.path(md5).chmod(0o444)
        self.write_listing(listing)

    def write_listing(self, listing: Listing) -> None:
        """Writes the listing itself into the cache."""
        path = self.path(f"{listing.id}.dir")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            overwrite(path, listing.content)
            path.chmod(0o444)

    def listing(self, version: str) -> Listing:
        """Listing of a version, verified against its id."""
        md5 = f"{version}.dir"
        return Listing.parse(self.get(md5, name=f"the listing of version {version[:12]}").read_bytes(), name=md5)

    def former(self) -> Iterator[Listing]:
        """Yields each listing in the cache that is one of a data version; other projects' listings are left out."""
        for path in self.cache.glob("??/*.dir"):
            with suppress(CorruptObject):
                listing = Listing.parse(path.read_bytes(), name=path.name)
                if listing.files.keys() >= VERSIONED:
                    yield listing

    def get(self, md5: str, *, name: str) -> Path:
        """Path of the cache object, its bytes verified; fetched from the remote if it is missing or corrupt.

        Raises:
            MissingFromRemote: the cache has no intact copy, and the remote has none at all.
            CorruptObject: the remote's copy is corrupt as well.
        """
        path = self.path(md5)
        if not self.is_good(path, md5, name=name):
            path.unlink(missing_ok=True)
            self.fetch(md5, name=name)
        return path

    def get_all(self, files: Mapping[str, str]) -> None:
        """Brings the objects of these files (name to MD5) into the cache, as `get` does."""
        self.read_ahead(Listing(files))
        lacking = {md5: name for name, md5 in files.items() if not self.is_good(self.path(md5), md5, name=name)}
        if not lacking:
            return
        with counted("fetching", sum(self.remote.sizes(lacking)) or None, unit=MB) as progress:
            for md5, name in lacking.items():
                self.path(md5).unlink(missing_ok=True)
                self.fetch(md5, name=name, progress=progress)

    def is_good(self, path: Path, md5: str, *, name: str) -> bool:
        """True if the file at `path` exists and its bytes have that MD5."""
        return path.is_file() and self.hashes.md5(path, once=is_shard(name)) == md5.removesuffix(".dir")

    def fetch(self, md5: str, *, name: str, progress: Progress | None = None) -> None:
        """Fetches the object from the remote, and verifies it before it replaces the cached one.

        progress: counts the bytes.

        Raises:
            MissingFromRemote, CorruptObject
        """
        source = self.remote.path(md5)
        if not self.remote.fs.exists(source):
            there = f"neither in the cache nor at {source}"
            raise MissingFromRemote(f"{name} ({md5}) is {there}; restore it from a backup of the remote")
        path = self.path(md5)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            self.remote.get(md5, part, progress=progress)
            if not self.is_good(part, md5, name=""):
                what = f"{name} is corrupt: {source} no longer hashes to {md5}"
                raise CorruptObject(f"{what}; restore it from a backup of the remote")
            part.chmod(0o444)
            sync(part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def fill(self, folder: Path, listing: Listing) -> None:
        """Makes `folder` hold exactly the files of `listing`, as read-only links to verified cache objects, fsynced."""
        for attempt in (1, 2):
            found = Listing.of(folder, hashes=self.hashes)
            for extra in found.files.keys() - listing.files.keys():
                (folder / extra).unlink()
            wrong = sorted(name for name, md5 in listing.files.items() if found.files.get(name) != md5)
            if not wrong:
                return sync_tree(folder)
            if attempt == 2:
                raise CorruptObject(
                    f"{folder / wrong[0]} changes while it is read; check the disk, then run the command again"
                )
            self.get_all({name: listing.files[name] for name in wrong})
            with counted("linking", len(wrong), unit="files") as progress:  # copies, where no links can be made
                for name in wrong:
                    (folder / name).unlink(missing_ok=True)
                    link(self.get(listing.files[name], name=name), folder / name)
                    (folder / name).chmod(0o444)
                    progress.add(1)

    def missing(self, listing: Listing) -> dict[str, str]:
        """Objects of the version that the remote lacks or holds with other bytes, MD5 to the file's name.

        In a local remote every object is hashed; in any other only its existence is checked.
        """
        wanted = {md5: name for name, md5 in listing.files.items()} | {f"{listing.id}.dir": "its listing"}
        if self.remote.is_local:
            self.hashes.read_ahead(Path(self.remote.path(md5)) for md5, name in wanted.items() if is_shard(name))
        return {md5: name for md5, name in wanted.items() if not self._is_stored(md5, name=name)}

    def _is_stored(self, md5: str, *, name: str) -> bool:
        path = self.remote.path(md5)
        if self.remote.is_local:
            return self.is_good(Path(path), md5, name=name)
        return bool(self.remote.fs.exists(path))

    def keep(self, md5: str, *, name: str) -> None:
        """Puts the object into the remote, unless the remote holds it.

        Raises:
            MissingFromRemote: the remote cannot be written.
        """
        if not self._is_stored(md5, name=name):
            self.remote.put(md5, self.get(md5, name=name))

    def store(self, listing: Listing) -> None:
        """Puts every object of the version into the remote that is missing there, then verifies and fsyncs all of them.

        Raises:
            MissingFromRemote: an object did not arrive.
        """
        try:
            missing = self.missing(listing)
            self.get_all({name: md5 for md5, name in missing.items()})
            # `dvc push` skips objects that its index lists, even if they are gone or corrupt.
            with counted("pushing", self.num_bytes(missing), unit=MB) as progress:
                for md5 in missing:
                    self.remote.put(md5, self.path(md5), progress=progress)
        finally:
            self.remote.sweep([*listing.files.values(), listing.id])
        still = self.missing(listing)
        if still:
            md5, name = next(iter(still.items()))
            where = f"did not arrive at {self.remote.path(md5)}"
            raise MissingFromRemote(f"{name} ({md5}) {where}; check the remote, then run the command again")
        paths = self.paths(listing)
        if self.remote.is_local:
            paths += [Path(self.remote.path(path.parent.name + path.name)) for path in paths]
        folders = {folder for path in paths for folder in (path.parent, path.parent.parent)}
        for path in (*paths, *folders):
            sync(path)


def _key(path: Path) -> str:
    """Identity of the file's bytes; it changes when the file does."""
    info = path.stat()
    return f"{info.st_dev}:{info.st_ino}:{info.st_size}:{info.st_mtime_ns}"
