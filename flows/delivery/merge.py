"""The tables of the next data version, while a delivery is merged into its base.

All data are columns, in Arrow or numpy. So a small delivery to a large version costs little, and a large delivery needs
no Python object per photo.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from flows.data import near
from flows.data.columns import to_numpy
from flows.data.fingerprints import Fingerprints
from flows.data.near import PAIRS
from flows.delivery.claims import CLAIMS, Claimed, furthest_from_training, has_effect, is_labelled
from flows.delivery.near import Pairs, Photos, Side
from flows.delivery.rows import Refused
from flows.delivery.splits import hold_out
from models.data.manifest import CHECKED, INDEX, LABELS, NEAR, TABLES, UNLABELLED, read_table, write_table

LOCATIONS = pa.schema([INDEX.field(name) for name in ("shard", "offset", "size")])


@dataclass
class NextVersion:
    """The version under construction: the tables of its base, the new photos, and the rows of the base that change.

    new: first claim on each new photo (columns of CLAIMS), sorted by id. split, decision: str objects, one per new
    photo; a decision is "conflict", "near-test", "near-train", or "" for a kept photo. labelled: index rows of the photos
    that had no label and get their first; they left the base and are among the new ones. contested: rows of the base that
    are in conflict now. near_test: unlabelled rows of the base that are near a new test photo. near: pairs of
    near-duplicates, of the base and new.
    """

    base: Mapping[str, pa.Table]
    fingerprints: Fingerprints
    new: pa.Table = field(default_factory=CLAIMS.empty_table)
    split: NDArray[np.object_] = field(default_factory=lambda: np.empty(0, object))
    decision: NDArray[np.object_] = field(default_factory=lambda: np.empty(0, object))
    labelled: pa.Table = field(default_factory=INDEX.empty_table)
    contested: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    near_test: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    conflicts: set[tuple[str, ...]] = field(default_factory=set)
    refused: set[tuple[str, ...]] = field(default_factory=set)
    near: pa.Table = field(default_factory=PAIRS.empty_table)

    @classmethod
    def read(cls, base: Path | None) -> NextVersion:
        """A version with the contents of `base`, if there is one, and nothing new."""
        if base is None:
            return cls({name: schema.empty_table() for name, schema in TABLES.items()}, Fingerprints.read(None))
        tables = {name: read_table(base, name=name) for name in TABLES}
        rows = {name: {tuple(row.values()) for row in tables[name].to_pylist()} for name in ("conflicts", "quarantine")}
        fingerprints, pairs = Fingerprints.read(base), near.read_pairs(base / near.NAME)
        return cls(tables, fingerprints, conflicts=rows["conflicts"], refused=rows["quarantine"], near=pairs)

    @cached_property
    def _ids(self) -> NDArray[np.bytes_]:
        """Ids of the base, sorted."""
        return to_numpy(self.base["index"]["id"], 16)

    def rows_of(self, ids: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """(N,) row of each photo in the base; -1 if the base does not hold it."""
        if not len(self._ids):
            return np.full(len(ids), -1)
        rows = np.searchsorted(self._ids, ids).clip(max=len(self._ids) - 1)
        return np.where(self._ids[rows] == ids, rows, -1)

    def holds(self, ids: NDArray[np.bytes_]) -> NDArray[np.bool_]:
        """(N,) true for each photo that the base holds."""
        return self.rows_of(ids) >= 0

    def known_labels(self) -> set[str]:
        """Labels of the base, given or decided."""
        labels = self.base["labels"]
        return {label for name in ("label", "given_label") for label in pc.unique(labels[name]).to_pylist() if label}

    def _is_unlabelled(self) -> NDArray[np.bool_]:
        """(N,) true for each photo of the base that has no label."""
        return pc.equal(self.base["labels"]["split"], UNLABELLED).to_numpy()

    def add(self, claims: pa.Table) -> int:
        """Adds the photos of `claims` (columns of CLAIMS, at least one row); returns how many are in conflict."""
        claims = self._with_effect(claims)
        if not len(claims):
            return 0
        ids, first, photo = Claimed.of(claims)
        self._release(self.rows_of(ids))
        rows = self.rows_of(ids)
        in_conflict = np.zeros(len(first), np.bool_)
        in_conflict[photo[self._disagree(claims, first, photo, rows)]] = True
        self._contest(claims.filter(pa.array(in_conflict[photo])), rows[in_conflict & (rows >= 0)])
        is_new = rows < 0
        chosen = first[is_new]
        # A first delivery often has one claim per photo; then no copy is needed.
        self.new = claims if len(chosen) == len(claims) else claims.take(pa.array(chosen))
        self.split = furthest_from_training(claims["split"], first)[is_new]
        self.decision = np.array(["", "conflict"], object)[in_conflict[is_new].astype(int)]
        return int(in_conflict.sum())

    def _with_effect(self, claims: pa.Table) -> pa.Table:
        """The claims that change anything; a delivery in which all have labels is not copied."""
        is_bare = self._is_unlabelled()
        if is_labelled(claims).all() and not is_bare.any():
            return claims
        claimed = Claimed.of(claims)
        rows = self.rows_of(claimed.id)
        is_out = np.append(is_bare & pc.equal(self.base["labels"]["decision"], CHECKED).to_numpy(), False)
        counts = has_effect(claims, claimed, held=rows >= 0, out=is_out[rows])
        return claims if counts.all() else claims.filter(pa.array(counts))

    def _release(self, claimed: NDArray[np.int64]) -> None:
        """Takes photos without a label out of the base if a claim on them has one, so that they are merged like new photos.

        claimed: rows of the photos with claims, -1 for new ones.
        """
        rows = claimed[np.append(self._is_unlabelled(), False)[claimed]]
        if not len(rows):
            return
        self.labelled = self.base["index"].take(pa.array(rows))
        stays = np.ones(len(self._ids), np.bool_)
        stays[rows] = False
        self.base = {**self.base, **{name: self.base[name].filter(pa.array(stays)) for name in ("index", "labels")}}
        del self._ids
        ids = self.labelled["id"]
        self.fingerprints = self.fingerprints.select(~np.isin(self.fingerprints.id, to_numpy(ids, 16)))
        self.near = self.near.filter(pc.invert(pc.is_in(self.near["id"], value_set=ids.combine_chunks())))

    def locations(self, packed: pa.Table) -> pa.Table:
        """Locations (columns of LOCATIONS) of the photos of `new`; `packed` are those of them that the base never held."""
        if not len(self.labelled):
            return packed
        is_held = pc.is_in(self.new["id"], value_set=self.labelled["id"].combine_chunks()).to_numpy()
        place = np.where(is_held, np.cumsum(is_held) - 1, len(self.labelled) + np.cumsum(~is_held) - 1)
        return pa.concat_tables([self.labelled.select(LOCATIONS.names), packed]).take(pa.array(place))

    def _disagree(
        self, claims: pa.Table, first: NDArray[np.int64], photo: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """(N,) true if a claim differs from both labels of the base, given and decided, or from the first claim."""
        claimed, known = claims["label"].take(pa.array(first)), pa.array(rows, mask=rows < 0)
        agreed = [
            pc.coalesce(self.base["labels"][name].take(known), claimed).take(pa.array(photo))
            for name in ("given_label", "label")
        ]
        given, decided = (pc.not_equal(claims["label"], labels) for labels in agreed)
        return pc.and_(given, decided).to_numpy()

    def _contest(self, claims: pa.Table, rows: NDArray[np.int64]) -> None:
        """Records photos with several labels: they leave training, and every claim on them is kept as a conflict."""
        self.contested = rows
        labels = self.base["labels"].select(["id", "given_label"]).take(pa.array(rows))
        origin = self.base["index"].select(["source", "path"]).take(pa.array(rows))
        former = (labels["id"], labels["given_label"], origin["source"], origin["path"])
        for columns in (claims.select(["id", "label", "source", "path"]).columns, former):
            self.conflicts.update(zip(*(column.to_pylist() for column in columns), strict=True))

    def hold_out(self, *, shares: Mapping[str, float], seed: int) -> None:
        """Moves a share of the new train photos to each split, unless the delivery brought photos of that split.

        Test photos are held out only while no photo of the base has a label.
        """
        given, is_later = set(self.split), not self._is_unlabelled().all()
        for split, share in shares.items():
            if split in given or (split == "test" and is_later):
                continue
            train = np.flatnonzero((self.split == "train") & (self.decision == ""))
            ids, labels = (self.new[name].take(pa.array(train)).combine_chunks() for name in ("id", "label"))
            classes = labels.dictionary_encode().indices.to_numpy()
            chosen = hold_out(ids.to_pylist(), classes, share=share, seed=seed, split=split)
            self.split[train[chosen]] = split

    def separate_near_duplicates(self, folder: Path, locations: pa.Table, *, limit: float | None) -> int:
        """Leaves out photos that are near-duplicates across the border of the test split; returns their number.

        A new test photo is left out if it is near a photo of the base that is not a test photo: it could have been
        learnt. Any other new photo is left out if it is near a test photo: a network would learn what is measured. A photo
        without a label never keeps a test photo out; it is left out itself, also if it is of the base.

        Args:
            folder: holds the shards of the base and of the new photos.
            locations: of the new photos, as for `write`.
            limit: of the difference (`flows.delivery.near`); None leaves nothing out.
        """
        base, new = self.fingerprints, Fingerprints.of(self.new)
        self.fingerprints, self.new = base.merged(new), self.new.drop_columns("fingerprint")
        if limit is None:
            return 0
        photos = self._photos(folder, locations)
        rows, first = self.rows_of(base.id), len(self._ids)
        labels = self.base["labels"]
        was_test, is_test = labels["split"].to_numpy()[rows] == "test", self.split == "test"
        was_bare, was_kept = self._is_unlabelled()[rows], labels["kept"].to_numpy()[rows]
        is_free = self.decision == ""

        def of_base(chosen: NDArray[np.bool_]) -> Side:
            return Side(rows[chosen], base.fingerprint[chosen])

        def of_new(chosen: NDArray[np.bool_]) -> Side:
            return Side(first + np.flatnonzero(chosen), new.fingerprint[chosen])

        learnt = ~was_test & ~was_bare
        self._leave_out(photos, photos.near(of_new(is_test & is_free), of_base(learnt), limit=limit), "near-train")
        new_tests = of_new(is_test & (self.decision != "near-train"))
        tests = [of_base(was_test), new_tests]
        test = Side(*(np.concatenate(column) for column in zip(*tests, strict=True)))
        self._leave_out(photos, photos.near(of_new(~is_test & is_free), test, limit=limit), "near-test")
        if len(new_tests.rows):
            self._leave_out(photos, photos.near(of_base(was_bare & was_kept), new_tests, limit=limit), "near-test")
        return len(self.near_test) + sum(int((self.decision == name).sum()) for name in NEAR)

    def _photos(self, folder: Path, locations: pa.Table) -> Photos:
        """The photos of the base, then the new ones."""
        old = [self.base["labels"]["label"], *(self.base["index"][name] for name in LOCATIONS.names)]
        new = [self.new["label"], *(locations[name] for name in LOCATIONS.names)]
        columns = [pa.chunked_array([*one.chunks, *other.chunks]) for one, other in zip(old, new, strict=True)]
        return Photos(folder, pa.table(columns, names=["label", *LOCATIONS.names]))

    def _leave_out(self, photos: Photos, found: Pairs, decision: str) -> None:
        """Records pairs, and leaves their photos out unless a class would lose too many."""
        labels, first = self.base["labels"], len(self._ids)
        kept = np.concatenate([labels["kept"].to_numpy(), self.decision == ""])
        is_train = np.concatenate([labels["split"].to_numpy(), self.split]) == "train"
        is_spared = photos.classes_to_spare(found.row, kept, is_train)
        left_out = found.row[~is_spared]
        self.decision[left_out[left_out >= first] - first] = decision
        self.near_test = np.append(self.near_test, left_out[left_out < first])
        ids = pa.chunked_array([*self.base["index"]["id"].chunks, *self.new["id"].chunks])
        decisions = np.where(is_spared, "", decision)
        pairs = [ids.take(pa.array(found.row)), ids.take(pa.array(found.near)), decisions, found.distance,
                 found.difference]  # fmt: skip
        self.near = pa.concat_tables([self.near, pa.table(pairs, schema=PAIRS)])

    def quarantine(self, refused: list[Refused]) -> None:
        """Adds refused rows to the quarantine."""
        self.refused.update((row.path, row.label, row.source, row.field, row.reason) for row in refused)

    def write(self, out: Path, *, locations: pa.Table) -> None:
        """Writes the tables, each sorted; `locations` (columns of LOCATIONS) of the new photos are sorted by id."""
        self.fingerprints.write(out)
        near.write_pairs(out, self.near)
        order = pc.sort_indices(pa.chunked_array([*self.base["index"]["id"].chunks, *self.new["id"].chunks]))
        _write(out, self.base["index"], self._new_index(locations), order, name="index")
        _write(out, self._base_labels(), self._new_labels(), order, name="labels")
        for name, rows in (("conflicts", self.conflicts), ("quarantine", self.refused)):
            columns = zip(*sorted(rows), strict=True) if rows else ((),) * len(TABLES[name])
            write_table(out, dict(zip(TABLES[name].names, map(list, columns), strict=True)), name=name)

    def _base_labels(self) -> pa.Table:
        # A person may settle a conflict, and a near-duplicate must not come back by that.
        is_near = pc.is_in(self.base["labels"]["decision"], value_set=pa.array(NEAR)).to_numpy()
        contested = self.contested[~is_near[self.contested]]
        return _left_out(_left_out(self.base["labels"], contested, "conflict"), self.near_test, "near-test")

    def _new_index(self, locations: pa.Table) -> pa.Table:
        columns = {name: (locations if name in LOCATIONS.names else self.new)[name] for name in INDEX.names}
        return pa.table(columns, schema=INDEX)

    def _new_labels(self) -> pa.Table:
        number = len(self.new)
        columns: dict[str, Any] = {
            "id": self.new["id"],
            "given_label": self.new["label"],
            "label": self.new["label"],
            "split": self.split,
            "kept": self.decision == "",
            "decision": self.decision,
            "score": pa.nulls(number, pa.float32()),
            "round": np.zeros(number, np.int8),
            "scored_by": np.full(number, "", object),
        }
        return pa.table(columns, schema=LABELS)


def _write(out: Path, base: pa.Table, new: pa.Table, order: pa.Array, *, name: str) -> None:
    table = pa.concat_tables([base, new]).take(order) if len(base) else new  # new rows are sorted already
    write_table(out, dict(zip(table.column_names, table.columns, strict=True)), name=name)


def _left_out(labels: pa.Table, rows: NDArray[np.int64], decision: str) -> pa.Table:
    """The labels with these rows not kept, and with this decision."""
    chosen = np.zeros(len(labels), np.bool_)
    chosen[rows] = True
    for name, value in {"kept": False, "decision": decision}.items() if len(rows) else ():
        column = pc.if_else(pa.array(chosen), value, labels[name])
        labels = labels.set_column(labels.schema.get_field_index(name), LABELS.field(name), column)
    return labels
