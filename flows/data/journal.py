"""Putting another folder in the place of data/, so that a kill at any moment can be undone or completed."""

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
    """The journal of one change of data/ and data.dvc, and what was there before.

    While the journal exists a change is under way. The old data and the old pointer are kept beside it until the end,
    so that undoing needs only renames: it works on a full disk too.
    """

    workspace: Workspace

    @property
    def journal(self) -> Path:
        """Exists exactly while a change is under way."""
        return self.workspace.state / "journal.json"

    @property
    def old_data(self) -> Path:
        """data/ as it was."""
        return self.workspace.state / "previous"

    @property
    def old_pointer(self) -> Path:
        """data.dvc as it was."""
        return self.workspace.state / "previous.dvc"

    def begin(self, *, tip: str | None, new_objects: Iterable[Path]) -> None:
        """Write the journal: where the ledger stands, and which cache objects the change will bring in."""
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
        """Whether a change was begun and neither ended nor undone."""
        return self.journal.exists()

    def tip(self) -> str | None:
        """Where the ledger stood when the change began."""
        found = self._facts()["tip"]
        return None if found is None else str(found)

    def set_aside(self) -> None:
        """Move data/ away, if there is one."""
        if self.workspace.data.exists():
            os.rename(self.workspace.data, self.old_data)

    def put(self, folder: Path) -> None:
        """Make `folder` the new data/."""
        os.rename(folder, self.workspace.data)
        sync(self.workspace.root)
        sync(self.workspace.state)

    def undo(self) -> None:
        """Put the old data and pointer back, and drop the cache objects that nothing refers to now."""
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
        """What `begin` wrote.

        Raises:
            CorruptObject: other bytes than it wrote; what was under way can be neither undone nor completed by them.
        """
        digest, _, content = self.journal.read_bytes().partition(b"\n")
        if digest.decode(errors="replace") != hashlib.sha256(content).hexdigest():
            way_out = (
                "remove it, then `cleanshelf data verify --all --heal` puts right what it can and says what is left"
            )
            raise CorruptObject(f"{self.journal} no longer has its hash; {way_out}")
        return dict(json.loads(content))

    def end(self) -> None:
        """The change is complete: forget what was before."""
        self.forget()
        self._close()

    def forget(self) -> None:
        """Drop what was before a change that is over, or that was killed before its journal."""
        shutil.rmtree(self.old_data, ignore_errors=True)
        self.old_pointer.unlink(missing_ok=True)

    def _close(self) -> None:
        self.journal.unlink()
        sync(self.workspace.state)
