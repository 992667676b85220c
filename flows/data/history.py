"""The history of the data: its entries, and what follows from them for each version."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from heapq import merge
from typing import Any

from flows.data.pointer import REF, read_pointer, tag_of
from flows.errors import CorruptObject
from flows.workspace.ledger import Commit, Ledger

MADE_BY = "run"  # file in the commit of a version that a run made: the name of the run
CLEANED = "clean-"  # the steps of cleaning: clean-1, clean-2, ... for its rounds
DELIVERED = f"{CLEANED}0"  # step that takes back what earlier cleaning decided


def descent(version: str, entries: Iterable[Entry]) -> list[str]:
    """The version and its ancestors, newest first, as far back as these entries go."""
    parents = {entry.id: entry.parent for entry in entries}
    found = [version]
    while parent := parents.get(found[-1]):
        found.append(parent)
    return found


def withdrawn(entries: Iterable[Entry], made: Iterable[Entry] = ()) -> set[str]:
    """Versions that a rollback left behind and that no later rollback brought back; entries are given oldest first.

    A rollback to a version brings back the versions that were valid when it was last selected, or when the nearest of its
    ancestors was, if it is one of the versions `made` by runs and was never selected. So does a rollback to a version from
    which photos were purged: it adds a version without those photos, with that version as parent.
    """
    entries = list(entries)
    known = [*entries, *made]
    standing: dict[str, tuple[str, ...]] = {}  # versions that were valid when each version was last selected
    now: tuple[str, ...] = ()
    for entry in entries:
        if entry.step in ("rollback", "purge"):
            source = next((each for each in descent(entry.id, known) if each in standing), "")
            now = standing.get(source, now)
        now = (*now, entry.id)
        standing[entry.id] = now
    return set(standing) - set(now)


def made_by_cleaning(version: str, history: Iterable[Entry]) -> list[str]:
    """The version and the ancestors that cleaning made it from, newest first; cleaning did not make the last one."""
    return descent(version, (entry for entry in history if entry.step.startswith(CLEANED)))


def uncleaned(version: str, history: Iterable[Entry]) -> str:
    """The version that cleaning made `version` from; `version` itself if cleaning did not make it.

    Labels are scored again from there. A retraining that is repeated, or resumed after a kill, then takes the same
    decisions instead of cleaning its own result further.
    """
    return made_by_cleaning(version, history)[-1]


def is_cleaned(entry: Entry) -> bool:
    """True for a version with the decisions of a round of cleaning."""
    return entry.step.startswith(CLEANED) and entry.step != DELIVERED


def entries(ledger: Ledger) -> list[tuple[Commit, str | None]]:
    """Every entry, newest first, with the version that it selects; None if its pointer cannot be read."""
    commits = ledger.log(REF)
    pointers = ledger.read_many([(commit.sha, "data.dvc") for commit in commits])
    return [(commit, version_of(pointer)) for commit, pointer in zip(commits, pointers, strict=True)]


def made(ledger: Ledger) -> list[tuple[Commit, str | None]]:
    """The commit of each version that a run made, newest first, whether it was selected later or not."""
    commits = ledger.tagged(tag_of("*"))
    runs = ledger.read_many([(commit.sha, MADE_BY) for commit in commits])
    found = [commit for commit, run in zip(commits, runs, strict=True) if run is not None]
    pointers = ledger.read_many([(commit.sha, "data.dvc") for commit in found])
    return [(commit, version_of(pointer)) for commit, pointer in zip(found, pointers, strict=True)]


def read_log(ledger: Ledger, *, selected: str | None) -> list[Entry]:
    """Every entry with its facts, newest first; `selected` is the version that data.dvc names.

    Raises:
        CorruptObject: the data.dvc of an entry names no version.
    """
    found = entries(ledger)
    return _with_facts(ledger, found, range(len(found), 0, -1), selected=selected)


def read_made(ledger: Ledger, *, selected: str | None) -> list[Entry]:
    """The version that each run made with its facts, as `read_log`; without a number, as it was not selected thereby."""
    found = made(ledger)
    return _with_facts(ledger, found, [None] * len(found), selected=selected)


def _with_facts(
    ledger: Ledger,
    found: Sequence[tuple[Commit, str | None]],
    numbers: Iterable[int | None],
    *,
    selected: str | None,
) -> list[Entry]:
    facts = ledger.read_many([(commit.sha, "VERSION.json") for commit, _ in found])
    runs = ledger.read_many([(commit.sha, MADE_BY) for commit, _ in found])
    return [
        _entry(number, commit, version, json.loads(content or b"{}"), run=(run or b"").decode(), selected=selected)
        for number, (commit, version), content, run in zip(numbers, found, facts, runs, strict=True)
    ]


def _entry(
    number: int | None,
    commit: Commit,
    version: str | None,
    facts: Mapping[str, Any],
    *,
    run: str,
    selected: str | None,
) -> Entry:
    if version is None:
        way_out = f"fetch {REF} from a git remote that has it"
        what = f"entry {number}" if number else f"the version that run {run} made"
        raise CorruptObject(f"data.dvc of {what} ({commit.sha}) names no data version; {way_out}")
    step, _, message = commit.message.partition(": ")
    parent, counts = facts.get("parent"), facts.get("counts", {})
    return Entry(number, version, parent, step, message, commit.time, counts, version == selected, run)


def interleaved(history: Sequence[Entry], made: Iterable[Entry]) -> list[Entry]:
    """The history with the versions that runs made and that it never selected, newest first."""
    selected = {entry.id for entry in history}
    others = [entry for entry in made if entry.id not in selected]
    return list(merge(others, history, key=lambda entry: datetime.fromisoformat(entry.time), reverse=True))


def overtaken(ledger: Ledger, *, since: str) -> str:
    """The newest entry after the tip `since` that is not the result of cleaning, in words; "" if there is none."""
    commits = ledger.log(REF)
    for number, commit in zip(range(len(commits), 0, -1), commits, strict=True):
        if commit.sha == since:
            break
        if not commit.message.startswith(CLEANED):
            return f"entry {number} ({commit.message.partition(':')[0]})"
    return ""


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
    """One entry of the history: `number` counts from 1; `parent` is the version that this version was made from.

    A version that a run made and did not select has the name of that `run` and no number.
    """

    number: int | None
    id: str
    parent: str | None
    step: str
    message: str
    time: str
    counts: dict[str, int]
    selected: bool
    run: str = ""
