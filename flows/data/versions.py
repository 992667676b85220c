"""Data versions: commit, materialise, compare, roll back, and repair after a kill; flows.data.change has the order."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from durable import overwrite, sync
from flows.data.change import Change
from flows.data.diff import DataDiff, compare_labels
from flows.data.history import Entry, complete_tag, entries, interleaved, made, read_log, read_made, version_of
from flows.data.objects import Listing, Objects
from flows.data.pointer import READY, REF, read_local_remote, read_pointer
from flows.data.purge_record import Purged, write_variant
from flows.data.verify import Broken, DataLinks
from flows.errors import LocalEdits, PurgedVersion, Unconfirmed, UnknownVersion, WorkspaceMissing, WorldError
from flows.workspace import Workspace
from flows.workspace.files import or_disk_full, sweep, sync_tree
from flows.workspace.ledger import Ledger

if TYPE_CHECKING:
    from flows.data.dvc_store import DvcRemote


@dataclass(frozen=True)
class DataVersions:
    """Data versions of one workspace. Callers hold its lock DATA_LOCK around every change of the selected version."""

    workspace: Workspace

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger, which holds the history."""
        return Ledger(self.workspace.root)

    @cached_property
    def store(self) -> DvcRemote:
        """DVC's cache and remote, which hold the bytes."""
        from flows.data.dvc_store import DvcRemote  # an import of DVC takes longer than to read the history

        return DvcRemote(self.workspace)

    # --- reading -----------------------------------------------------------------------------------------------

    def selected(self) -> str | None:
        """Id of the selected version (32 hex digits) from data.dvc, or None before the first version.

        Raises:
            CorruptObject: data.dvc exists but names no version.
        """
        try:
            return read_pointer(self.workspace.pointer.read_bytes(), name=str(self.workspace.pointer))
        except FileNotFoundError:
            return None

    def log(self) -> list[Entry]:
        """All entries of the history, newest first."""
        return read_log(self.ledger, selected=self.selected())

    def known_entries(self) -> list[Entry]:
        """All entries of the history, newest first, followed by the versions that runs made."""
        return [*self.log(), *read_made(self.ledger, selected=self.selected())]

    def listed(self) -> list[Entry]:
        """All entries, newest first, and among them the versions that runs made and that were never selected."""
        return interleaved(self.log(), read_made(self.ledger, selected=None))

    def resolve(self, text: str) -> str:
        """Full id of the version that "selected", a tag, or the first digits of an id name.

        Raises:
            UnknownVersion: no version has that name, or more than one.
        """
        known = self._selectable()
        wanted = text.strip().removeprefix("data/").removesuffix(".dir")
        if wanted == "selected":
            found = [self.selected()] if self.selected() else []
        else:
            found = [version for version in known if wanted and version.startswith(wanted)]
        if len(found) == 1 and found[0]:
            return found[0]
        names = ", ".join(version[:12] for version in known[:8]) or "none yet; run `cleanshelf ingest` first"
        problem = "names more than one data version" if found else "is not a data version"
        raise UnknownVersion(f"{text!r} {problem}; there are: {names}")

    def check_clean(self) -> None:
        """Checks that data/ holds no file that differs from the selected version. A missing file is not an edit.

        Raises:
            LocalEdits: it does; the message names the files.
        """
        if self.workspace.data.exists():
            with self.store.objects() as objects:
                self._check_clean(objects)

    def _check_clean(self, objects: Objects) -> None:
        data, version = self.workspace.data, self.selected()
        if not data.exists():
            return
        kept = objects.listing(version).files if version else {}
        found = Listing.of(data, hashes=objects.hashes).files
        edited = sorted(name for name, md5 in found.items() if kept.get(name) != md5)
        if edited:
            shown = ", ".join(edited[:5]) + (f" and {len(edited) - 5} more" if len(edited) > 5 else "")
            raise LocalEdits(
                f"{data} differs from the selected version {version[:12] if version else '(none)'}: {shown}; "
                "move these files away or delete them, then run the command again"
            )

    def diff(self, a: str, b: str) -> DataDiff:
        """Changes from version `a` to version `b` (names as for `resolve`)."""
        with self.store.objects() as objects:
            old, new = (
                objects.get(objects.listing(self.resolve(text)).files["labels.parquet"], name="labels.parquet")
                for text in (a, b)
            )
            return compare_labels(old, new)

    def materialise(self, version: str) -> Path:
        """Makes the folder versions/<id> with the files of the version, verified and read-only; READY is written last.

        Several processes may call this at once. The next call completes the folder that a killed one left.

        Raises:
            UnknownVersion, CorruptObject, MissingFromRemote
        """
        version = self.resolve(version)
        folder = self.workspace.versions / version
        ready = folder / READY
        with or_disk_full(f"writing the files of data version {version[:12]}"), self.store.objects() as objects:
            if ready.exists() and Listing.of(folder, hashes=objects.hashes).without(READY).id == version:
                return folder
            listing = self._whole(version, objects)
            folder.mkdir(parents=True, exist_ok=True)
            ready.unlink(missing_ok=True)
            objects.fill(folder, listing)
            overwrite(ready, f"{version}\n".encode())
        return folder

    def verify(self, *names: str, reread: bool = False) -> list[Broken]:
        """Every broken link from the names of versions to their bytes; empty if there is none. Changes nothing.

        Args:
            names: as for `resolve`; without any, all versions are verified.
            reread: read every byte again, including shards that have not changed since they were last read.
        """
        wanted = [self.resolve(name) for name in names] or self.known()
        with self.store.objects(reread=reread) as objects:
            return [broken for each in wanted for broken in self._chain(each, objects).check()]

    def heal(self, *names: str) -> None:
        """Repairs whatever intact copies of the versions allow (names as for `verify`)."""
        wanted = [self.resolve(name) for name in names] or self.known()
        for version in wanted:
            with or_disk_full(f"healing data version {version[:12]}"), self.store.objects() as objects:
                self._chain(version, objects).heal()
            if (self.workspace.versions / version).exists():
                with suppress(WorldError):
                    self.materialise(version)

    def _chain(self, version: str, objects: Objects) -> DataLinks:
        return DataLinks(version, self.workspace, self.ledger, objects, Purged.read(self.ledger))

    def _whole(self, version: str, objects: Objects) -> Listing:
        """Listing of a version from which no photo was purged.

        Raises:
            PurgedVersion: a photo was.
        """
        listing = objects.listing(version)
        if Purged.read(self.ledger).affects(listing):
            way_out = f"`cleanshelf data rollback {version[:12]}` selects it without them"
            raise PurgedVersion(f"data version {version[:12]} held photos that were purged; {way_out}")
        return listing

    def known(self) -> list[str]:
        """Every version of the history, newest entry first, followed by versions that only a tag names."""
        files = [(f"refs/tags/{tag}", "data.dvc") for tag in self.ledger.tags("data/*")]
        tagged = [version for pointer in self.ledger.read_many(files) if (version := version_of(pointer))]
        return list(dict.fromkeys([*self._selectable(), *tagged]))

    def _selectable(self) -> list[str]:
        found = [*entries(self.ledger), *made(self.ledger)]
        return list(dict.fromkeys(version for _, version in found if version))

    def push(self, *names: str) -> None:
        """Makes sure that the remote holds every object of these versions (names as for `verify`).

        Raises:
            UnknownVersion, MissingFromRemote, CorruptObject
        """
        for version in [self.resolve(name) for name in names] or self.known():
            with self.store.objects() as objects:
                if not Purged.read(self.ledger).affects(listing := objects.listing(version)):
                    objects.store(listing)

    def pull(self, *names: str) -> None:
        """Brings every object of these versions into the cache (names as for `verify`), and restores a missing data/.

        Raises:
            UnknownVersion, MissingFromRemote, CorruptObject
        """
        is_bare = not self.workspace.data.exists() and self.ledger.tip(REF) is not None
        if is_bare and self.selected() is None:
            overwrite(self.workspace.pointer, self.ledger.read(REF, "data.dvc"))
        for version in [self.resolve(name) for name in names] or self.known():
            with or_disk_full(f"pulling data version {version[:12]}"), self.store.objects() as objects:
                purged, files = Purged.read(self.ledger), objects.listing(version).files
                objects.get_all({name: md5 for name, md5 in files.items() if not purged.is_replaced(name)})
        if is_bare:
            with self.store.objects() as objects:
                folder, _ = self._staged(self.resolve("selected"), objects)
            os.rename(folder, self.workspace.data)
            sync(self.workspace.root)

    # --- changing ----------------------------------------------------------------------------------------------

    def new_folder(self) -> Path:
        """An empty folder on the file system of data/, to be filled and passed to `commit`."""
        self._staging.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="new-", dir=self._staging))
        folder.chmod(0o755)  # it becomes data/, which others may read
        return folder

    def commit(self, folder: Path, *, step: str, message: str, shards: Mapping[str, str] = MappingProxyType({})) -> str:
        """Makes the contents of `folder` (from `new_folder`) the selected version; returns its id.

        The same contents as the selected version make no new version. On any failure the old state is restored and
        `folder` is removed.

        Args:
            shards: new shards (SHA-256 to MD5), hashed while they were written; they are not read again here.

        Raises:
            LocalEdits, DiskFull, MissingFromRemote, CorruptObject
        """
        self.confirm()
        with or_disk_full(f"committing a data version ({step})", leaving=folder), self.store.objects() as objects:
            self._check_clean(objects)
            sync_tree(folder)
            objects.hashes.add({folder / "shards" / f"{name}.tar": md5 for name, md5 in shards.items()})
            listing = Listing.of(folder, hashes=objects.hashes)
            present = self.workspace.data.exists() and Listing.of(self.workspace.data, hashes=objects.hashes) == listing
            if present and listing.id == self.selected():
                complete_tag(self.ledger, listing.id)
                shutil.rmtree(folder)
                return listing.id
            self._change.select(folder, listing, objects, step=step, message=message)
        return listing.id

    def keep(self, folder: Path, *, step: str, message: str, run: str) -> str:
        """Stores the contents of `folder` as a version that `run` made; returns its id. `folder` is removed.

        It is known by its tag and not selected: data/ and data.dvc stay as they are.

        Raises:
            DiskFull, MissingFromRemote, CorruptObject
        """
        with or_disk_full(f"storing a data version ({step})", leaving=folder), self.store.objects() as objects:
            sync_tree(folder)
            listing = Listing.of(folder, hashes=objects.hashes)
            self._change.keep(folder, listing, objects, step=step, message=message, run=run)
        shutil.rmtree(folder)
        return listing.id

    def rollback(self, text: str) -> Entry:
        """Selects an earlier version again, as a new entry. Nothing is deleted.

        Raises:
            UnknownVersion, LocalEdits, CorruptObject, MissingFromRemote
        """
        version = self.resolve(text)
        entry = next(each for each in self.known_entries() if each.id == version)
        origin = f"entry {entry.number}" if entry.number else f"made by run {entry.run}"
        return self.select_as(version, step="rollback", message=f"to {version[:12]} ({origin})")

    def select_as(self, version: str, *, step: str, message: str) -> Entry:
        """Selects a version as a new entry with this step and message.

        Raises:
            LocalEdits, CorruptObject, MissingFromRemote
        """
        self.confirm()
        with self.store.objects() as objects:
            self._check_clean(objects)
            self._select(version, objects, step=step, message=message)
        return self.log()[0]

    def select(self, text: str) -> Entry:
        """Selects an earlier version again. If it held purged photos, a version without them is made and selected.

        Raises:
            UnknownVersion, LocalEdits, CorruptObject, MissingFromRemote
        """
        version = self.resolve(text)
        if self.commit_without(Purged.read(self.ledger), version):
            return self.log()[0]
        return self.rollback(version)

    def commit_without(self, purged: Purged, version: str) -> str | None:
        """Commits `version` without its purged photos; returns the new id, or None if the version held none of them."""
        with self.store.objects() as objects:
            if not purged.affects(objects.listing(version)):
                return None
            self._check_clean(objects)
            folder = self.new_folder()
            with or_disk_full("writing a version without purged photos", leaving=folder):
                write_variant(objects, version, purged, folder=folder)
        return self.commit(folder, step="purge", message=f"{version[:12]} without purged photos")

    def import_from(self, repository: Path) -> str:
        """Imports the version that data.dvc in `repository` names, from the DVC remote of that folder; returns its id.

        The folder is only read. It need not be a git repository.

        Raises:
            WorkspaceMissing: it has no data.dvc, or no local remote in its .dvc/config.
            MissingFromRemote, CorruptObject
        """
        self.confirm()
        self.check_clean()
        if not (repository / "data.dvc").is_file():
            raise WorkspaceMissing(f"{repository} has no data.dvc; give the folder that holds it")
        version = read_pointer((repository / "data.dvc").read_bytes(), name=str(repository / "data.dvc"))
        from flows.data.dvc_store import OBJECTS, folder_remote

        source = folder_remote(read_local_remote(repository).joinpath(*OBJECTS))
        with or_disk_full(f"importing data version {version[:12]}"), self.store.objects() as objects:
            other = Objects(objects.cache, source, objects.hashes)
            other.get_all(other.listing(version).files)
            if self.selected() != version:
                self._select(
                    version, objects, step="adopt", message=f"{version[:12]} from {repository.absolute().name}"
                )
        return version

    def repair(self, *, staging: bool = True) -> None:
        """Undoes or completes a killed commit or rollback, and removes abandoned staging folders.

        Every command that changes something calls it first, under its lock.

        Args:
            staging: False for runs, as the staging folders may be those of a living delivery.

        Raises:
            Unconfirmed: a purge was interrupted.
        """
        self.confirm()
        if staging:
            shutil.rmtree(self._staging, ignore_errors=True)
        for folder in (self.workspace.root, self.workspace.state):
            sweep(folder)
        if not Purged.read(self.ledger).complete:
            raise Unconfirmed(
                "a purge was interrupted; run `cleanshelf data purge` to complete it, then run the command again"
            )

    def _select(self, version: str, objects: Objects, *, step: str, message: str) -> None:
        folder, listing = self._staged(version, objects)
        with or_disk_full(f"selecting data version {version[:12]}", leaving=folder):
            self._change.select(folder, listing, objects, step=step, message=message)

    def _staged(self, version: str, objects: Objects) -> tuple[Path, Listing]:
        """A new folder with the files of the version, and their listing."""
        folder = self.new_folder()
        with or_disk_full(f"selecting data version {version[:12]}", leaving=folder):
            listing = self._whole(version, objects)
            objects.fill(folder, listing)
        return folder, listing

    def confirm(self) -> None:
        """Undoes or completes the change that a killed process left under way, if there is one."""
        with self.store.locked():
            self._change.confirm()

    @property
    def _staging(self) -> Path:
        return self.workspace.state / "staging"

    @property
    def _change(self) -> Change:
        return Change(self.workspace, self.ledger, self.store)
