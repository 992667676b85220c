"""Verification and repair of every link from the name of a data version to its bytes.

    tag -> entry -> pointer data.dvc -> listing -> objects in the cache -> the same in the remote -> copies as files

Checking changes nothing. Healing copies from intact files only, and overwrites nothing that may be a user's edit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from durable import link, overwrite
from flows.data.history import MADE_BY, complete_tag, first_entry, version_of
from flows.data.objects import Listing, Objects
from flows.data.pointer import READY, REF, tag_of
from flows.data.purge_record import Purged
from flows.errors import CorruptObject, WorldError
from flows.workspace import Workspace
from flows.workspace.ledger import Commit, Ledger

LISTING = "its listing"


@dataclass(frozen=True)
class Broken:
    """A broken link of a version.

    link: tag, entry, pointer, listing, cache, remote, copy or data. file: its location. problem: what is wrong.
    way_out: what to do.
    """

    version: str
    link: str
    file: str
    problem: str
    way_out: str

    def __str__(self) -> str:
        return f"{self.link}: {self.file} {self.problem}; {self.way_out}"


@dataclass(frozen=True)
class DataLinks:
    """Links of one version (32 hex digits)."""

    version: str
    workspace: Workspace
    ledger: Ledger
    objects: Objects
    purged: Purged

    def check(self) -> list[Broken]:
        """Broken links, from the name down to the copies."""
        return [*self._names(), *self._bytes()]

    def heal(self) -> None:
        """Repairs whatever an intact copy allows; `check` lists the rest."""
        if self._entry is not None:
            complete_tag(self.ledger, self.version)
        if self._is_newest and (self._is_astray or self._is_altered):
            overwrite(self.workspace.pointer, self.ledger.read(REF, "data.dvc"))
        if self._listing is None:
            return
        damaged = self._damaged_data(self._listing)  # has to precede the repair of the cache
        for name, md5 in self._wanted(self._listing):
            if not self._is_cached(name, md5):
                self._restore(name, md5)
        for md5, name in self.objects.missing(self._listing).items():
            if not self.purged.is_replaced(name) and self._is_cached(name, md5):
                with suppress(WorldError):
                    self.objects.remote.put(md5, self.objects.path(md5))
        for name in damaged:
            self._put_in_data(name, self._listing.files[name])

    # --- names -------------------------------------------------------------------------------------------------

    def _names(self) -> Iterator[Broken]:
        tag = tag_of(self.version)
        sha = self.ledger.tip(f"refs/tags/{tag}")
        if self._entry is None and not self._is_made_only:
            yield self._broken(
                "entry", REF, "has no entry of this version", f"fetch {REF} from a git remote that has it"
            )
        if sha is None:
            yield self._broken("tag", f"refs/tags/{tag}", "is missing", self._heal)
        elif (found := version_of(self.ledger.read_many([(sha, "data.dvc")])[0])) != self.version:
            way_out = f"remove it (`git tag -d {tag}`), then {self._heal}"
            yield self._broken("pointer", f"{tag}:data.dvc", f"names {found or 'no version'}", way_out)
        if self._is_newest and self._pointed != self.version:
            way_out = self._heal if self._is_astray else f"run `cleanshelf data rollback {self.version[:12]}`"
            problem = f"names {self._pointed or 'no version'} instead of the newest entry's version"
            yield self._broken("pointer", str(self.workspace.pointer), problem, way_out)
        if self._is_newest and self._is_altered:
            yield self._broken("pointer", str(self.workspace.pointer), "differs from the newest entry's", self._heal)

    @cached_property
    def _entry(self) -> Commit | None:
        return first_entry(self.ledger, self.version)

    @property
    def _is_made_only(self) -> bool:
        """True for a version that a run made, which only its tag names until it is selected."""
        return self.ledger.read_many([(f"refs/tags/{tag_of(self.version)}", MADE_BY)])[0] is not None

    @cached_property
    def _is_newest(self) -> bool:
        return version_of(self.ledger.read_many([(REF, "data.dvc")])[0]) == self.version

    @property
    def _pointed(self) -> str | None:
        """The version that data.dvc names."""
        path = self.workspace.pointer
        return version_of(path.read_bytes() if path.exists() else None)

    @property
    def _holds_data(self) -> bool:
        """True if data/ should hold this version."""
        return self._is_newest and (self._pointed == self.version or self._is_astray)

    @cached_property
    def _is_astray(self) -> bool:
        """True if data.dvc names another version, and data/ does not hold that version."""
        if self._pointed == self.version:
            return False
        return Listing.of(self.workspace.data, hashes=self.objects.hashes).id != self._pointed

    @property
    def _is_altered(self) -> bool:
        """True if data.dvc names this version, but its bytes differ from the recorded ones."""
        if self._pointed != self.version:
            return False
        return self.ledger.read_many([(REF, "data.dvc")])[0] != self.workspace.pointer.read_bytes()

    # --- bytes -------------------------------------------------------------------------------------------------

    def _bytes(self) -> Iterator[Broken]:
        listing = self._listing
        if listing is None:
            yield self._broken("listing", f"{self.version}.dir", "is intact in neither cache nor remote", _BACKUP)
            return
        self.objects.read_ahead(listing)
        lost = self.objects.missing(listing)
        for name, md5 in self._wanted(listing):
            is_cached, is_stored = self._is_cached(name, md5), md5 not in lost
            is_whole_somewhere = is_cached or is_stored or name == LISTING or self._copy(name, md5)
            way_out = self._heal if is_whole_somewhere else _BACKUP
            if not is_cached:
                yield self._broken("cache", f"{name}: {self.objects.path(md5)}", "is missing or corrupt", way_out)
            if not is_stored:
                where = f"{name}: {self.objects.remote.path(md5)}"
                yield self._broken("remote", where, "is missing or corrupt", way_out)
        for kind, folder in self._copies:
            yield from self._wrong_files(kind, folder, listing)

    def _wrong_files(self, kind: str, folder: Path, listing: Listing) -> Iterator[Broken]:
        found = Listing.of(folder, hashes=self.objects.hashes).without(READY).files
        may_heal = self._damaged_data(listing) if kind == "data" else [*listing.files, *found]
        for name in sorted(found.keys() | listing.files.keys()):
            if found.get(name) != listing.files.get(name):
                exists, wanted = name in found, name in listing.files
                problem = "is missing" if not exists else "differs" if wanted else "does not belong there"
                way_out = self._heal if name in may_heal else f"move it away, then {self._heal}"
                yield self._broken(kind, str(folder / name), problem, way_out)

    @cached_property
    def _listing(self) -> Listing | None:
        """The listing from the first intact copy; None if there is none."""
        md5 = f"{self.version}.dir"
        path = self.objects.path(md5)
        contents = [path.read_bytes() if path.exists() else None, self.objects.remote.read(md5)]
        for content in contents:
            with suppress(CorruptObject):
                if content and (listing := Listing.parse(content, name=md5)).id == self.version:
                    return listing
        for _, folder in self._copies:
            if (listing := Listing.of(folder, hashes=self.objects.hashes).without(READY)).id == self.version:
                return listing
        return None

    @property
    def _copies(self) -> list[tuple[str, Path]]:
        """Folders that should hold exactly this version. A folder of versions/ without READY is still being filled."""
        copy = self.workspace.versions / self.version
        copies = [("copy", copy)] if (copy / READY).exists() else []
        return [*copies, ("data", self.workspace.data)] if self._holds_data else copies

    def _wanted(self, listing: Listing) -> Iterator[tuple[str, str]]:
        yield LISTING, f"{self.version}.dir"
        yield from sorted(item for item in listing.files.items() if not self.purged.is_replaced(item[0]))

    def _is_cached(self, name: str, md5: str) -> bool:
        return self.objects.is_good(self.objects.path(md5), md5, name=name)

    def _copy(self, name: str, md5: str) -> Path | None:
        """A file with these bytes in one of the copies; None if there is none."""
        files = (folder / name for _, folder in self._copies)
        return next((file for file in files if self.objects.is_good(file, md5, name=name)), None)

    def _restore(self, name: str, md5: str) -> None:
        """Repairs a cache object from a copy or the remote; a corrupt one stays until an intact one is found."""
        path, source = self.objects.path(md5), self._copy(name, md5)
        if name == LISTING and self._listing is not None:
            path.unlink(missing_ok=True)
            self.objects.write_listing(self._listing)
        elif source is not None:
            path.unlink(missing_ok=True)
            link(source, path)
        else:
            with suppress(WorldError):
                self.objects.fetch(md5, name=name)
        if path.exists():
            path.chmod(0o444)

    def _damaged_data(self, listing: Listing) -> list[str]:
        """Files of data/ that are missing, or corrupt like the cache object that they link to: these are not edits."""
        if not self._holds_data:
            return []
        return [name for name, md5 in listing.files.items() if self._is_damaged(name, md5)]

    def _is_damaged(self, name: str, md5: str) -> bool:
        file, kept = self.workspace.data / name, self.objects.path(md5)
        if not file.exists():
            return True
        return kept.exists() and file.samefile(kept) and not self._is_cached(name, md5)

    def _put_in_data(self, name: str, md5: str) -> None:
        if self._is_cached(name, md5):
            (self.workspace.data / name).unlink(missing_ok=True)
            link(self.objects.path(md5), self.workspace.data / name)

    @property
    def _heal(self) -> str:
        return f"run `cleanshelf data verify {self.version[:12]} --heal`"

    def _broken(self, link: str, file: str, problem: str, way_out: str) -> Broken:
        return Broken(self.version, link, file, problem, way_out)


_BACKUP = "no intact copy is left here; restore it from a backup of the remote"
