"""Decisions of people on labels, each on disk before it is confirmed: an append-only table in SQLite.

A later decision on a photo replaces an earlier one of the same person; two people never overwrite each other. Photos are
named by id, so decisions hold for every data version that has the photo. Saving them makes a data version
(flows.feedback), after which they count as saved.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contract.labels import shown
from flows.errors import Decided

NAME = "review.sqlite"
KEEP, TAKE, RELABEL, NONE, SKIP = "keep", "take", "relabel", "none", "skip"
KINDS = (KEEP, TAKE, RELABEL, NONE, SKIP)  # the label is right, the suggestion is, another is, no product, not decided
SAID = {KEEP: "the label is right", TAKE: "the suggestion is right", RELABEL: "another label", NONE: "not a product"}

TABLE = """
CREATE TABLE IF NOT EXISTS decision (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    photo TEXT NOT NULL,
    kind TEXT NOT NULL,
    label TEXT NOT NULL,
    who TEXT NOT NULL,
    at TEXT NOT NULL,
    version TEXT NOT NULL,
    batch INTEGER NOT NULL,
    undone INTEGER NOT NULL DEFAULT 0,
    saved TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS decision_photo ON decision (photo);
CREATE INDEX IF NOT EXISTS decision_batch ON decision (batch);
CREATE INDEX IF NOT EXISTS decision_pending ON decision (seq) WHERE NOT undone AND saved = '';
"""
PENDING = "SELECT max(seq), photo, kind, label, who, at, version FROM decision WHERE NOT undone AND saved = ''"


@dataclass(frozen=True)
class Decision:
    """A person's decision on one photo.

    label: the class that the photo shows; "" for none of the products, and for a photo that was skipped. version: data
    version that the person looked at. at: ISO 8601, UTC. seq: grows with every decision.
    """

    photo: str
    kind: str
    label: str
    who: str
    version: str
    at: str = ""
    seq: int = 0


class Decisions:
    """The decisions in a workspace's folder `state`. Threads and processes may share it."""

    def __init__(self, state: Path) -> None:
        self.path = state / NAME
        self._local = threading.local()
        with self._changing() as database:
            database.executescript(TABLE)

    def add(self, decisions: Sequence[Decision], *, seen: int | None = None) -> int:
        """Writes decisions, which can be undone together, and returns the number of the last.

        Args:
            seen: number of the last decision that the person has seen; None overwrites whatever others decided. What the person
                has decided in the same way since is not written again: the answer was lost, and the request repeated.

        Raises:
            Decided: another person has decided about one of the photos since; nothing is written.
        """
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._changing() as database:
            if seen is not None:
                newer = _newer(database, decisions, seen=seen)
                _refuse_overwriting(decisions, newer)
                known = set(map(_what, newer))
                decisions = [each for each in decisions if _what(each) not in known]
            (batch,) = database.execute("SELECT coalesce(max(batch), 0) + 1 FROM decision").fetchone()
            rows = [(each.photo, each.kind, each.label, each.who, at, each.version, batch) for each in decisions]
            database.executemany(
                "INSERT INTO decision (photo, kind, label, who, at, version, batch) VALUES (?, ?, ?, ?, ?, ?, ?)", rows
            )
            return _last(database)

    def undo(self, who: str) -> list[Decision]:
        """Takes back the last decision of a person, or batch of decisions, unless it was saved; returns what was taken back."""
        with self._changing() as database:
            last = "SELECT max(batch) FROM decision WHERE who = ? AND NOT undone AND saved = ''"
            rows = database.execute(
                f"SELECT seq, photo, kind, label, who, at, version FROM decision WHERE batch = ({last}) AND saved = ''",
                (who,),
            ).fetchall()
            database.executemany("UPDATE decision SET undone = 1 WHERE seq = ?", [(row[0],) for row in rows])
        return [_decision(row) for row in rows]

    def pending(self, *, after: int = 0) -> dict[str, Decision]:
        """The decision that holds for each photo and is not saved yet, by photo; only those after number `after`."""
        with self._reading() as database:
            rows = database.execute(f"{PENDING} AND seq > ? GROUP BY photo ORDER BY 1", (after,)).fetchall()
        return {row[1]: _decision(row) for row in rows}

    def num_unsaved(self) -> int:
        """Number of photos with a decision that is not saved yet; skipped photos have none."""
        with self._reading() as database:
            (number,) = database.execute(
                f"SELECT count(*) FROM ({PENDING} GROUP BY photo) WHERE kind != ?", (SKIP,)
            ).fetchone()
        return int(number)

    def mark_saved(self, version: str, *, upto: int, left_out: Sequence[str] = ()) -> None:
        """Marks pending decisions up to number `upto` as saved in a data version.

        Skipped photos, and those in `left_out`, stay pending.
        """
        with self._changing() as database:
            database.execute("CREATE TEMP TABLE IF NOT EXISTS left_out (photo TEXT PRIMARY KEY)")
            database.executemany("INSERT OR IGNORE INTO left_out VALUES (?)", [(photo,) for photo in left_out])
            database.execute(
                "UPDATE decision SET saved = ? WHERE NOT undone AND saved = '' AND kind != ? AND seq <= ? "
                "AND photo NOT IN (SELECT photo FROM left_out)",
                (version, SKIP, upto),
            )
            database.execute("DELETE FROM left_out")

    def of(self, photo: str) -> list[Mapping[str, Any]]:
        """Everything that people decided about a photo, newest first."""
        with self._reading() as database:
            found = database.execute("SELECT * FROM decision WHERE photo = ? ORDER BY seq DESC", (photo,))
            names = [each[0] for each in found.description]
            return [dict(zip(names, row, strict=True)) for row in found]

    def forget(self, photos: Sequence[str]) -> None:
        """Deletes every decision about these photos, for a purge; their bytes are overwritten on disk."""
        with self._changing() as database:
            database.executemany("DELETE FROM decision WHERE photo = ?", [(photo,) for photo in photos])
        with closing(self._connect()) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def state(self) -> tuple[int, int]:
        """Two numbers that change with every change of the table: the last decision, and how many count as pending."""
        with self._reading() as database:
            (pending,) = database.execute("SELECT count(*) FROM decision WHERE NOT undone AND saved = ''").fetchone()
            return _last(database), pending

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is on disk when the block ends."""
        database = self._connection()
        database.execute("BEGIN IMMEDIATE")
        try:
            yield database
        except BaseException:
            database.rollback()
            raise
        database.commit()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        yield self._connection()

    def _connection(self) -> sqlite3.Connection:
        if not hasattr(self._local, "database"):
            self._local.database = self._connect()
        connection: sqlite3.Connection = self._local.database
        return connection

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")  # a decision survives a power cut, not only a kill
        database.execute("PRAGMA secure_delete = ON")
        return database


def _newer(database: sqlite3.Connection, decisions: Sequence[Decision], *, seen: int) -> list[Decision]:
    """The last decision of each person on each of the photos after number `seen`; what was saved meanwhile counts too."""
    rows = database.execute(  # +seq: photos are looked up in their index, however many decisions came since
        "SELECT max(seq), photo, kind, label, who, at, version FROM decision "
        "WHERE photo IN (SELECT value FROM json_each(?)) AND +seq > ? AND NOT undone GROUP BY photo, who",
        (json.dumps([each.photo for each in decisions]), seen),
    )
    return [_decision(row) for row in rows]


def _refuse_overwriting(decisions: Sequence[Decision], newer: Sequence[Decision]) -> None:
    """Refuses decisions on photos that others have decided since."""
    whose = {each.photo: each.who for each in decisions}
    for other in newer:
        if other.who != whose[other.photo] and other.kind != SKIP:
            said = SAID[other.kind] + (f", {shown(other.label[:60])}" if other.kind == RELABEL else "")
            raise Decided(f"{other.who} has decided about photo {other.photo} in the meantime: {said}; look again")


def _what(decision: Decision) -> tuple[str, str, str, str]:
    return decision.photo, decision.who, decision.kind, decision.label


def _last(database: sqlite3.Connection) -> int:
    (last,) = database.execute("SELECT coalesce(max(seq), 0) FROM decision").fetchone()
    return int(last)


def _decision(row: Sequence[Any]) -> Decision:
    seq, photo, kind, label, who, at, version = row
    return Decision(photo, kind, label, who, version, at, seq)
