"""The tables of a data version while a delivery is merged into it.

What the base version holds stays in its Arrow tables, so a small delivery to a large version costs little; only new photos
are Python objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from flows.delivery import Refused, Row
from flows.near import Looks, nearly_in
from flows.shards import Placed
from flows.splits import hold_out
from models.data.manifest import INDEX, LABELS, SPLITS, TABLES, read_table, write_table
from pixels.look import BYTES


@dataclass(frozen=True, slots=True)
class Photo:
    """A row whose photo could be decoded."""

    row: Row
    sha256: str
    width: int
    height: int
    look: bytes

    @property
    def id(self) -> str:
        return self.sha256[:16]


Claims: TypeAlias = dict[str, list[Photo]]  # what is said of each photo, by id


@dataclass(slots=True)
class New:
    """A photo that the base version does not have: as announced first, and what is decided of it."""

    photo: Photo
    split: str
    decision: str = ""  # "conflict", "near-test", "near-train"; kept where there is none


class Known(NamedTuple):
    """A photo of the base version: where its row is, what it is taken for, and who announced it."""

    row: int
    given_label: str
    label: str
    source: str
    path: str


@dataclass
class Draft:
    """The version under construction: the base's tables, the new photos by id, and the rows of the base that change."""

    base: Mapping[str, pa.Table]
    looks: Looks
    new: dict[str, New] = field(default_factory=dict)
    contested: list[int] = field(default_factory=list)  # rows of the base that are in conflict now
    conflicts: set[tuple[str, ...]] = field(default_factory=set)
    refused: set[tuple[str, ...]] = field(default_factory=set)

    @classmethod
    def read(cls, base: Path | None) -> Draft:
        if base is None:
            return cls({name: schema.empty_table() for name, schema in TABLES.items()}, Looks.read(None))
        tables = {name: read_table(base, name=name) for name in TABLES}
        rows = {name: {tuple(row.values()) for row in tables[name].to_pylist()} for name in ("conflicts", "quarantine")}
        return cls(tables, Looks.read(base), conflicts=rows["conflicts"], refused=rows["quarantine"])

    @cached_property
    def _ids(self) -> NDArray[np.bytes_]:
        """Of the base, sorted."""
        return self.base["index"]["id"].to_numpy().astype("S16")

    def has(self, key: str) -> bool:
        """Whether the base holds the photo."""
        row = np.searchsorted(self._ids, key.encode())
        return bool(row < len(self._ids) and self._ids[row] == key.encode())

    def known_labels(self) -> set[str]:
        return {word for name in ("label", "given_label") for word in pc.unique(self.base["labels"][name]).to_pylist()}

    def take(self, claims: Claims) -> int:
        """Add the photos with what is claimed of them; how many of them are in conflict."""
        known, found = self._known(list(claims)), 0
        for key, photos in claims.items():
            there = known.get(key)
            first = photos[0].row
            agreed = {there.given_label, there.label} if there else {first.label}
            if there is None:
                self.new[key] = New(photos[0], _furthest_from_training(photos))
            if any(photo.row.label not in agreed for photo in photos):
                found += 1
                self._contest(key, photos, there)
        return found

    def _known(self, keys: list[str]) -> dict[str, Known]:
        """Those of the photos that the base has."""
        wanted = np.array(keys, dtype="S16")
        at = np.searchsorted(self._ids, wanted)
        there = np.flatnonzero(at < len(self._ids))
        rows = at[there[self._ids[at[there]] == wanted[there]]]
        labels = self.base["labels"].select(["id", "given_label", "label"]).take(rows).to_pydict()
        named = self.base["index"].select(["source", "path"]).take(rows).to_pydict()
        columns = (labels["given_label"], labels["label"], named["source"], named["path"])
        return {key: Known(*row) for key, *row in zip(labels["id"], rows.tolist(), *columns, strict=True)}

    def _contest(self, key: str, photos: list[Photo], there: Known | None) -> None:
        """Several labels for one photo: it leaves training, and every claim is written down."""
        self.conflicts.update((key, photo.row.label, photo.row.source, photo.row.path) for photo in photos)
        if there is None:
            self.new[key].decision = "conflict"
        else:
            self.conflicts.add((key, there.given_label, there.source, there.path))
            self.contested.append(there.row)

    def hold_out(self, *, shares: Mapping[str, float], seed: int) -> None:
        """Give each split its share of the new train photos, unless the delivery brought its own."""
        given = {new.split for new in self.new.values()}
        for split, share in shares.items():
            if split in given:
                continue
            train = {
                key: new.photo.row.label for key, new in self.new.items() if not new.decision and new.split == "train"
            }
            for key in hold_out(train, share=share, seed=seed, split=split):
                self.new[key].split = split

    def keep_apart(self) -> int:
        """Take out new photos that are nearly one across the border of the test split; how many.

        A new test photo near a photo of the base that is not test is no test any more; any other new photo near a test photo
        would teach what is measured.
        """
        ids = sorted(self.new)
        looks = np.frombuffer(b"".join(self.new[key].photo.look for key in ids), np.uint8).reshape(-1, BYTES)
        is_test = np.array([self.new[key].split == "test" for key in ids], np.bool_)
        rows = np.searchsorted(self._ids, self.looks.id.astype("S16"))
        was_test = self.base["labels"]["split"].to_numpy()[rows] == "test"
        near_train, near_test = np.zeros(len(ids), np.bool_), np.zeros(len(ids), np.bool_)
        near_train[is_test] = nearly_in(looks[is_test], self.looks.look[~was_test])
        test = np.concatenate([self.looks.look[was_test], looks[is_test & ~near_train]])
        near_test[~is_test] = nearly_in(looks[~is_test], test)
        for decision, found in (("near-train", near_train), ("near-test", near_test)):
            for row in np.flatnonzero(found):
                self.new[ids[row]].decision = self.new[ids[row]].decision or decision
        self.looks = self.looks.merged(Looks(np.array(ids, "U16"), looks))
        return int((near_train | near_test).sum())

    def quarantine(self, refused: list[Refused]) -> None:
        self.refused.update((row.path, row.label, row.source, row.field, row.reason) for row in refused)

    def write(self, out: Path, *, places: Mapping[str, Placed]) -> None:
        """The tables, each sorted; `places` says where the new photos lie."""
        self.looks.write(out)
        ids = sorted(self.new)
        order = pc.sort_indices(pa.chunked_array([*self.base["index"]["id"].chunks, pa.array(ids, pa.string())]))
        for name, new in (("index", self._new_index(ids, places)), ("labels", self._new_labels(ids))):
            base = self._base_labels() if name == "labels" else self.base[name]
            table = pa.concat_tables([base, new]).take(order)
            write_table(out, {column: table[column] for column in table.column_names}, name=name)
        for name, rows in (("conflicts", self.conflicts), ("quarantine", self.refused)):
            columns = zip(*sorted(rows), strict=True) if rows else ((),) * len(TABLES[name])
            write_table(out, dict(zip(TABLES[name].names, map(list, columns), strict=True)), name=name)

    def _base_labels(self) -> pa.Table:
        labels = self.base["labels"]
        if not self.contested:
            return labels
        contested = np.zeros(len(labels), np.bool_)
        contested[self.contested] = True
        changed = {"kept": False, "decision": "conflict"}
        for name, value in changed.items():
            column = pc.if_else(pa.array(contested), value, labels[name])
            labels = labels.set_column(labels.schema.get_field_index(name), LABELS.field(name), column)
        return labels

    def _new_index(self, ids: list[str], places: Mapping[str, Placed]) -> pa.Table:
        photos, at = [self.new[key].photo for key in ids], [places[key] for key in ids]
        columns = {
            "id": ids,
            "sha256": [photo.sha256 for photo in photos],
            **{name: [getattr(place, name) for place in at] for name in ("shard", "offset", "size")},
            **{name: [getattr(photo, name) for photo in photos] for name in ("width", "height")},
            **{name: [getattr(photo.row, name) for photo in photos] for name in ("source", "path")},
        }
        return pa.table(columns, schema=INDEX)

    def _new_labels(self, ids: list[str]) -> pa.Table:
        new = [self.new[key] for key in ids]
        labels = [each.photo.row.label for each in new]
        columns = {
            "id": ids,
            "given_label": labels,
            "label": labels,
            "split": [each.split for each in new],
            "kept": [not each.decision for each in new],
            "decision": [each.decision for each in new],
            "score": pa.nulls(len(ids), pa.float32()),
            "round": np.zeros(len(ids), np.int8),
            "judge": [""] * len(ids),
        }
        return pa.table(columns, schema=LABELS)


def _furthest_from_training(photos: list[Photo]) -> str:
    """Of several splits announced for one photo, so that test never leaks."""
    return max((photo.row.split for photo in photos), key=("", *SPLITS).index) or "train"
