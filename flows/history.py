"""What the history of the data says of its versions."""

from __future__ import annotations

from collections.abc import Iterable

from flows.data_version import Entry


def descent(version: str, entries: Iterable[Entry]) -> list[str]:
    """The version, the one that it was made of, and so on back to the first that these entries know."""
    parents = {entry.id: entry.parent for entry in entries}
    found = [version]
    while parent := parents.get(found[-1]):
        found.append(parent)
    return found


def withdrawn(entries: Iterable[Entry]) -> set[str]:
    """Of a history, oldest entry first, the versions that a rollback left behind and none brought back.

    A rollback to a version brings back what stood when that was selected last. So does one to a version from which photos
    were purged: it adds a version without them, whose parent it is.
    """
    standing: dict[str, tuple[str, ...]] = {}  # the versions that stood when each was selected last
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
