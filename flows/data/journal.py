"""Replacement of data/ by another folder, with a journal from which a killed change is undone or completed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from durable import overwrite, sync
from flows.errors import CorruptObject
from flows.workspace import Workspace


@dataclass(frozen=True)
class Journal:
    """Record of a change to data/ and data.dvc, kept together with the old data and pointer.

    A change is under way while the journal exists. The old data and pointer stay beside it until the end, so undoing
    needs only renames and works on a full disk too.
    """

    workspace: Workspace

    @property
    def journal(self) -> Path:
        """The journal's file, which exists exactly while a change is under way."""
        return self.workspace.state / "journal.json"

    @property
    def old_data(self) -> Path:
        """The former data/."""
        return self.workspace.state / "previous"

    @property
    def old_pointer(self) -> Path:
        """The former data.dvc."""
        return self.workspace.state / "previous.dvc"

    def begin(self, *, tip: str | None, new_objects: Iterable[Path]) -> None:
        """Writes the journal: the tip of the ledger, and the cache objects that the change will add."""
        self.forget()
        pointer = self.workspace.pointer
        if pointer.exists():
            overwrite(self.old_pointer, pointer.read_bytes())
        facts = {
            "tip": tip,
            "had_data": self.workspace.data.exists(),
            "had_pointer": pointer.exists(),
            "new_objects": [str(path) for path in new_objects],
        }
        content = json.dumps(facts).encode()
        overwrite(self.journal, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)

    def is_under_way(self) -> bool:
        """True if a change was begun and neither ended nor undone."""
        return self.journal.exists()

    def tip(self) -> str | None:
        """The ledger's tip when the change began."""
        found = self._facts()["tip"]
        return None if found is None else str(found)

    def set_aside(self) -> None:
        """Moves data/ aside, if it exists."""
        if self.workspace.data.exists():
            os.rename(self.workspace.data, self.old_data)

    def put(self, folder: Path) -> None:
        """Makes `folder` the new data/."""
        os.rename(folder, self.workspace.data)
        sync(self.workspace.root)
        sync(self.workspace.state)

    def undo(self) -> None:
        """Restores the old data and pointer, and removes the cache objects that the change added."""
        facts = self._facts()
        data, pointer = self.workspace.data, self.workspace.pointer
        if self.old_data.exists() or not facts["had_data"]:
            shutil.rmtree(data, ignore_errors=True)
        if self.old_data.exists():
            os.rename(self.old_data, data)
        if self.old_pointer.exists():
            os.replace(self.old_pointer, pointer)
        elif not facts["had_pointer"]:
            pointer.unlink(missing_ok=True)
        for path in facts["new_objects"]:
            Path(path).unlink(missing_ok=True)
        sync(self.workspace.root)
        self._close()

    def _facts(self) -> dict[str, Any]:
        """The facts that `begin` wrote.

        Raises:
            CorruptObject: the bytes have changed, so the change can be neither undone nor completed from them.
        """
        digest, _, content = self.journal.read_bytes().partition(b"\n")
        if digest.decode(errors="replace") != hashlib.sha256(content).hexdigest():
            way_out = "remove it, then `cleanshelf data verify --all --heal` repairs what it can and lists the rest"
            raise CorruptObject(f"{self.journal} is corrupt (its hash differs); {way_out}")
        return dict(json.loads(content))

    def end(self) -> None:
        """Ends a complete change: removes the old data and pointer, and the journal."""
        self.forget()
        self._close()

    def forget(self) -> None:
        """Removes old data and pointer of a change that is over, or that was killed before it wrote its journal."""
        shutil.rmtree(self.old_data, ignore_errors=True)
        self.old_pointer.unlink(missing_ok=True)

    def _close(self) -> None:
        self.journal.unlink()
        sync(self.workspace.state)
