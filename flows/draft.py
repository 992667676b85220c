"""The rows of a data version while a delivery is merged into it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from flows.delivery import Refused, Row
from flows.errors import BadDelivery
from flows.shards import pack
from flows.splits import hold_out
from models.data.manifest import CONFLICTS, INDEX, LABELS, QUARANTINE, SPLITS, read_table, write_table


@dataclass(frozen=True, slots=True)
class Photo:
    """A row whose photo could be decoded."""

    row: Row
    sha256: str
    width: int
    height: int

    @property
    def id(self) -> str:
        return self.sha256[:16]


Claims: TypeAlias = dict[str, list[Photo]]  # what is said of each photo, by id


@dataclass
class Draft:
    """The rows of the version under construction, by photo id."""

    index: dict[str, dict[str, object]]
    labels: dict[str, dict[str, object]]
    conflicts: set[tuple[str, ...]]
    refused: set[tuple[str, ...]]

    @classmethod
    def read(cls, base: Path | None) -> Draft:
        if base is None:
            return cls({}, {}, set(), set())
        rows = {
            name: read_table(base, name=name).to_pylist() for name in ("index", "labels", "conflicts", "quarantine")
        }
        return cls(
            index={row["id"]: row for row in rows["index"]},
            labels={row["id"]: row for row in rows["labels"]},
            conflicts={tuple(row.values()) for row in rows["conflicts"]},
            refused={tuple(row.values()) for row in rows["quarantine"]},
        )

    def known_labels(self) -> set[str]:
        return {str(row[name]) for row in self.labels.values() for name in ("label", "given_label")}

    def take(self, claims: Claims) -> int:
        """Add the photos with what is claimed of them; how many of them are in conflict."""
        found = 0
        for key, photos in claims.items():
            is_fresh = key not in self.labels
            if is_fresh:
                self.labels[key] = _label_row(key, photos)
            row = self.labels[key]
            agreed = {row["given_label"], row["label"]}
            if any(photo.row.label not in agreed for photo in photos):
                found += 1
                self._set_conflict(key, photos, is_fresh=is_fresh)
        return found

    def _set_conflict(self, key: str, photos: list[Photo], *, is_fresh: bool) -> None:
        row = self.labels[key]
        if not is_fresh:
            known = self.index[key]
            self.conflicts.add((key, str(row["given_label"]), str(known["source"]), str(known["path"])))
        self.conflicts.update((key, photo.row.label, photo.row.source, photo.row.path) for photo in photos)
        row |= {"kept": False, "decision": "conflict"}

    def hold_out(self, fresh: Claims, *, shares: Mapping[str, float], seed: int) -> None:
        """Give each split its share of the new train photos, unless the delivery brought its own."""
        given = {self.labels[key]["split"] for key in fresh}
        for split, share in shares.items():
            if split in given:
                continue
            rows = (self.labels[key] for key in fresh)
            train = {str(row["id"]): str(row["label"]) for row in rows if row["kept"] and row["split"] == "train"}
            for key in hold_out(train, share=share, seed=seed, split=split):
                self.labels[key]["split"] = split

    def quarantine(self, refused: list[Refused]) -> None:
        self.refused.update((row.path, row.label, row.source, row.field, row.reason) for row in refused)

    def place(self, fresh: Claims, *, folder: Path, max_bytes: int) -> None:
        """Pack the new photos into shards and add their index rows."""
        places = pack(_reread(fresh), folder=folder, max_bytes=max_bytes)
        for key, (photo, *_) in fresh.items():
            at = places[key]
            where = {"shard": at.shard, "offset": at.offset, "size": at.size}
            size = {"width": photo.width, "height": photo.height}
            named = {"source": photo.row.source, "path": photo.row.path}
            self.index[key] = {"id": key, "sha256": photo.sha256, **where, **size, **named}

    def write(self, out: Path) -> None:
        index = [self.index[key] for key in sorted(self.index)]
        labels = [self.labels[key] for key in sorted(self.labels)]
        write_table(out, {name: [row[name] for row in index] for name in INDEX.names}, name="index")
        write_table(out, {name: [row[name] for row in labels] for name in LABELS.names}, name="labels")
        for name, schema, rows in (("conflicts", CONFLICTS, self.conflicts), ("quarantine", QUARANTINE, self.refused)):
            columns = zip(*sorted(rows), strict=True) if rows else ((),) * len(schema)
            write_table(out, dict(zip(schema.names, map(list, columns), strict=True)), name=name)


def _label_row(key: str, photos: list[Photo]) -> dict[str, object]:
    """A new photo as claimed; of several splits the one furthest from training wins, so that test never leaks."""
    label = photos[0].row.label
    split = max((photo.row.split for photo in photos), key=("", *SPLITS).index)
    decided = {"kept": True, "decision": "", "score": None, "round": 0, "judge": ""}
    return {"id": key, "given_label": label, "label": label, "split": split or "train", **decided}


def _reread(fresh: Claims) -> Iterator[tuple[str, bytes]]:
    for key, (photo, *_) in fresh.items():
        content = photo.row.file.read_bytes()
        if hashlib.sha256(content).hexdigest() != photo.sha256:
            raise BadDelivery(f"{photo.row.file} changed while it was read; ingest when the delivery is complete")
        yield key, content
