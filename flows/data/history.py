"""The history of the data: its entries, and what follows from them for each version."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from flows.data.pointer import REF, read_pointer, tag_of
from flows.errors import CorruptObject
from flows.workspace.ledger import Commit, Ledger


def descent(version: str, entries: Iterable[Entry]) -> list[str]:
    """The version and its ancestors, newest first, as far back as these entries go."""
    parents = {entry.id: entry.parent for entry in entries}
    found = [version]
    while parent := parents.get(found[-1]):
        found.append(parent)
    return found


def withdrawn(entries: Iterable[Entry]) -> set[str]:
    """Versions that a rollback left behind and that no later rollback brought back; entries are given oldest first.

    A rollback to a version brings back the versions that were valid when it was last selected. So does a rollback to a
    version from which photos were purged: it adds a version without those photos, with that version as parent.
    """
    standing: dict[str, tuple[str, ...]] = {}  # versions that were valid when each version was last selected
    now: tuple[str, ...] = ()
    for entry in entries:
        if entry.step == "rollback":
            now = standing[entry.id]
        elif entry.step == "purge" and entry.parent in standing:
            now = (*standing[entry.parent], entry.id)
        else:
            now = (*now, entry.id)
        standing[entry.id] = now
    return set(standing) - set(now)


def made_by_cleaning(version: str, history: Iterable[Entry]) -> list[str]:
    """The version and the ancestors that cleaning made it from, newest first; cleaning did not make the last one."""
    return descent(version, (entry for entry in history if entry.step.startswith("clean-")))


def uncleaned(version: str, history: Iterable[Entry]) -> str:
    """The version that cleaning made `version` from; `version` itself if cleaning did not make it.

    Labels are scored again from there. A retraining that is repeated, or resumed after a kill, then takes the same
    decisions instead of cleaning its own result further.
    """
    return made_by_cleaning(version, history)[-1]


def entries(ledger: Ledger) -> list[tuple[Commit, str | None]]:
    """Every entry, newest first, with the version that it selects; None if its pointer cannot be read."""
    commits = ledger.log(REF)
    pointers = ledger.read_many([(commit.sha, "data.dvc") for commit in commits])
    return [(commit, version_of(pointer)) for commit, pointer in zip(commits, pointers, strict=True)]


def read_log(ledger: Ledger, *, selected: str | None) -> list[Entry]:
    """Every entry with its facts, newest first; `selected` is the version that data.dvc names.

    Raises:
        CorruptObject: the data.dvc of an entry names no version.
    """
    found = entries(ledger)
    facts = ledger.read_many([(commit.sha, "VERSION.json") for commit, _ in found])
    numbers = range(len(found), 0, -1)
    return [
        _entry(number, commit, version, json.loads(content or b"{}"), selected=selected)
        for number, (commit, version), content in zip(numbers, found, facts, strict=True)
    ]


def _entry(
    number: int, commit: Commit, version: str | None, facts: Mapping[str, Any], *, selected: str | None
) -> Entry:
    if version is None:
        way_out = f"fetch {REF} from a git remote that has it"
        raise CorruptObject(f"data.dvc of entry {number} ({commit.sha}) names no data version; {way_out}")
    step, _, message = commit.message.partition(": ")
    parent, counts = facts.get("parent"), facts.get("counts", {})
    return Entry(number, version, parent, step, message, commit.time, counts, version == selected)


def first_entry(ledger: Ledger, version: str) -> Commit | None:
    """The entry that made the version; None if there is none."""
    return next((commit for commit, found in reversed(entries(ledger)) if found == version), None)


def complete_tag(ledger: Ledger, version: str) -> None:
    """Tags the first entry of the version, unless it is tagged. The tag comes last: a tagged version is complete."""
    commit = first_entry(ledger, version)
    assert commit is not None
    ledger.tag(tag_of(version), commit.sha, commit.message)


def version_of(pointer: bytes | None) -> str | None:
    """The version that a data.dvc names; None if there is no file or it names no version."""
    with suppress(CorruptObject):
        return read_pointer(pointer or b"", name="data.dvc")
    return None


@dataclass(frozen=True)
class Entry:
    """One entry of the history: `number` counts from 1; `parent` is the version that this version was made from."""

    number: int
    id: str
    parent: str | None
    step: str
    message: str
    time: str
    counts: dict[str, int]
    selected: bool
