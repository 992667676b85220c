"""Changes to the stored data versions: selects a version in place of another, or stores one that is not selected.

A change of the selected version proceeds in an order that stays consistent whenever it is killed:

    journal -> data/ replaced -> cache and data.dvc -> push -> remote verified -> entry on refs/data/main -> tag

The entry decides: without it `confirm` restores the old state, with it `confirm` completes the new one. A version that is
not selected has no entry and needs no journal, because data/ and data.dvc stay as they are:

    cache -> remote, verified -> commit -> tag

The tag decides: without it nothing names the version, and its objects in the cache are garbage.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from durable import overwrite
from flows.data.history import MADE_BY, complete_tag, entries
from flows.data.journal import Journal
from flows.data.objects import Listing, Objects
from flows.data.pointer import REF, make_pointer, tag_of
from flows.errors import WorldError
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger

if TYPE_CHECKING:
    from flows.data.dvc_store import DvcRemote

log = logging.getLogger("cleanshelf")


@dataclass(frozen=True)
class Change:
    """A change in one workspace. The caller holds the lock of `store`, so that no other process sees it half done."""

    workspace: Workspace
    ledger: Ledger
    store: DvcRemote

    def select(self, folder: Path, listing: Listing, objects: Objects, *, step: str, message: str) -> None:
        """Makes the contents of `folder` the selected version; on an error the old state is restored at once."""
        objects.drop_corrupt(listing)
        new_objects = self._new(listing, objects)
        self._journal.begin(tip=self.ledger.tip(REF), new_objects=new_objects)
        try:
            self._journal.set_aside()
            self._journal.put(folder)
            self._add(listing, objects)
            self._push(listing, objects)
            self._record(step=step, message=message)
        finally:
            self.confirm()

    def keep(self, folder: Path, listing: Listing, objects: Objects, *, step: str, message: str, run: str) -> None:
        """Stores the contents of `folder` as a version that `run` made and that is not selected."""
        objects.drop_corrupt(listing)
        new_objects = self._new(listing, objects)
        try:
            self.workspace.pin_cache()
            objects.write_listing(listing)  # first, so that `data gc` knows the objects that a kill leaves
            objects.bring_in(folder, listing)
            objects.store(listing)
            self._name(folder, listing, message=f"{step}: {message}", run=run)
        except BaseException:
            for path in new_objects:
                path.unlink(missing_ok=True)
            raise

    def confirm(self) -> None:
        """Undoes or completes the change that a killed process left under way, if there is one."""
        if not self._journal.is_under_way():
            self._journal.forget()
        elif self.ledger.tip(REF) == self._journal.tip():
            self._journal.undo()
        else:
            complete_tag(self.ledger, str(entries(self.ledger)[0][1]))
            self._journal.end()

    def _new(self, listing: Listing, objects: Objects) -> list[Path]:
        """Paths of the objects that the cache of this workspace lacks."""
        return [path for path in objects.paths(listing) if not path.exists() and self.workspace.holds(path)]

    def _add(self, listing: Listing, objects: Objects) -> None:
        """Writes the same bytes as `dvc add`, but without reading every shard again."""
        self.workspace.pin_cache()
        objects.bring_in(self.workspace.data, listing)
        overwrite(self.workspace.pointer, make_pointer(listing, data=self.workspace.data))

    def _push(self, listing: Listing, objects: Objects) -> None:
        missing = {} if objects.remote.is_local else objects.missing(listing)
        if missing:
            size_mb, place = objects.num_bytes(missing) / 1e6, objects.remote.root
            log.info("push: %d files, %.0f MB, to %s; DVC does not tell how far it is", len(missing), size_mb, place)
            with suppress(WorldError, OSError):  # `store` puts the objects that did not arrive, or raises
                self.store.push()
        objects.store(listing)

    def _record(self, *, step: str, message: str) -> None:
        files = {"data.dvc": self.workspace.pointer.read_bytes()}
        self.ledger.commit(REF, files | _facts(self.workspace.data), message=f"{step}: {message}")

    def _name(self, folder: Path, listing: Listing, *, message: str, run: str) -> None:
        if not self.ledger.tags(tag := tag_of(listing.id)):
            files = {"data.dvc": make_pointer(listing, data=folder), MADE_BY: run.encode()} | _facts(folder)
            self.ledger.tag(tag, self.ledger.record(files, message=message), message)

    @property
    def _journal(self) -> Journal:
        return Journal(self.workspace)


def _facts(folder: Path) -> dict[str, bytes]:
    path = folder / "VERSION.json"
    return {path.name: path.read_bytes()} if path.exists() else {}
