"""From a delivery to the files of a new data version.

Two passes over the photos, so that memory does not grow with their bytes: the first decodes and hashes every one on a
pool of threads, the second packs the new ones, sorted by id, into shards. Between them lie only names, hashes and
decisions.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from flows.delivery import Refused, Row, read_delivery
from flows.errors import BadDelivery
from flows.files import link, or_disk_full
from flows.shards import MAX_BYTES, pack
from flows.splits import hold_out
from models.data.manifest import (
    CONFLICTS,
    INDEX,
    LABELS,
    QUARANTINE,
    SPLITS,
    read_manifest,
    read_table,
    write_table,
    write_version,
)
from pixels import BadPhoto, decode

BATCH = 256  # photos in flight on the thread pool


@dataclass(frozen=True)
class IntakeReport:
    """What became of a delivery: numbers of rows, except `counts`, which are those of the whole new version.

    delivered = added + duplicates + quarantined; `conflicts` of the photos came with several labels.
    `quarantined` counts per reason. `is_new` is False when the base version already held everything.
    """

    delivered: int
    added: int
    duplicates: int
    conflicts: int
    quarantined: dict[str, int]
    counts: dict[str, int]
    warnings: list[str]
    is_new: bool


@dataclass(frozen=True, slots=True)
class _Photo:
    """A row whose photo could be decoded."""

    row: Row
    sha256: str
    width: int
    height: int

    @property
    def id(self) -> str:
        return self.sha256[:16]


def ingest(
    source: Path,
    *,
    base: Path | None,
    out: Path,
    parent: str | None = None,
    val_share: float = 0.1,
    test_share: float = 0.2,
    seed: int = 0,
    code: str = "",
    max_shard_bytes: int = MAX_BYTES,
) -> IntakeReport:
    """Read the delivery `source` on top of the version in folder `base` (or none) and write the new one to `out`.

    Photos that lie in `base` keep their split; the same inputs give the same bytes. `parent` (the id of `base`) and
    `code` go into VERSION.json.

    Args:
        val_share: share in [0, 1) of the open and train photos of each class that goes to val, if none came as val.
        test_share: the same for test, in the first delivery only and if none came as test.
        seed: chooses which.

    Raises:
        BadDelivery: see `flows.delivery`, or no photo could be decoded.
        DiskFull: `out` is gone then.
    """
    with or_disk_full(f"ingesting {source}", leaving=out):
        out.mkdir(parents=True, exist_ok=True)
        version = _Version.read(base)
        delivery = read_delivery(source, known=version.known_labels())
        photos, refused = _open_all(delivery.rows)
        if not photos:
            first = refused[0]
            raise BadDelivery(f"{source}: no photo could be decoded; the first is {first.path!r}: {first.reason}")
        refused = [*delivery.refused, *refused]
        claims = _by_id(photos)
        fresh = {key: found for key, found in claims.items() if key not in version.labels}
        conflicts = version.take(claims)
        _hold_out(version, fresh, is_first=base is None, val_share=val_share, test_share=test_share, seed=seed)
        version.quarantine(refused)
        _link_shards(base, out)
        version.place(fresh, folder=out / "shards", max_bytes=max_shard_bytes)
        version.write(out)
        is_new = base is None or not _is_same(base, out)
        config = _hash({"val_share": val_share, "test_share": test_share, "seed": seed})
        counts = write_version(out, parent=parent, step="ingest", config=config, code=code)
        if base is not None and not is_new:
            shutil.copyfile(base / "VERSION.json", out / "VERSION.json")
    return IntakeReport(
        delivered=len(delivery.rows) + len(delivery.refused),
        added=len(fresh),
        duplicates=len(photos) - len(fresh),
        conflicts=conflicts,
        quarantined=dict(Counter(f"{row.field}: {row.reason}" for row in refused)),
        counts=counts,
        warnings=_warnings(out),
        is_new=is_new,
    )


@dataclass
class _Version:
    """The rows of the version under construction, by photo id."""

    index: dict[str, dict[str, object]]
    labels: dict[str, dict[str, object]]
    conflicts: set[tuple[str, ...]]
    refused: set[tuple[str, ...]]

    @classmethod
    def read(cls, base: Path | None) -> _Version:
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

    def take(self, claims: dict[str, list[_Photo]]) -> int:
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

    def _set_conflict(self, key: str, photos: list[_Photo], *, is_fresh: bool) -> None:
        row = self.labels[key]
        if not is_fresh:
            known = self.index[key]
            self.conflicts.add((key, str(row["given_label"]), str(known["source"]), str(known["path"])))
        self.conflicts.update((key, photo.row.label, photo.row.source, photo.row.path) for photo in photos)
        row |= {"kept": False, "decision": "conflict"}

    def quarantine(self, refused: list[Refused]) -> None:
        self.refused.update((row.path, row.label, row.source, row.field, row.reason) for row in refused)

    def place(self, fresh: dict[str, list[_Photo]], *, folder: Path, max_bytes: int) -> None:
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


def _label_row(key: str, photos: list[_Photo]) -> dict[str, object]:
    """A new photo as claimed; of several splits the one furthest from training wins, so that test never leaks."""
    label = photos[0].row.label
    split = max((photo.row.split for photo in photos), key=("", *SPLITS).index)
    decided = {"kept": True, "decision": "", "score": None, "round": 0}
    return {"id": key, "given_label": label, "label": label, "split": split or "train", **decided}


def _open_all(rows: list[Row]) -> tuple[list[_Photo], list[Refused]]:
    """Decode and hash every photo; the ones that fail are refused with the decoder's reason."""
    photos: list[_Photo] = []
    refused: list[Refused] = []
    waiting = iter(rows)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        while batch := list(islice(waiting, BATCH)):
            for found in pool.map(_open, batch):
                if isinstance(found, _Photo):
                    photos.append(found)
                else:
                    refused.append(found)
    return photos, refused


def _open(row: Row) -> _Photo | Refused:
    try:
        content = row.file.read_bytes()
        image = decode(content)
    except (BadPhoto, OSError) as error:
        reason = str(error) if isinstance(error, BadPhoto) else f"cannot be read ({error.strerror})"
        return Refused(row.path, row.label, row.source, "photo", reason)
    return _Photo(row, hashlib.sha256(content).hexdigest(), image.width, image.height)


def _by_id(photos: list[_Photo]) -> dict[str, list[_Photo]]:
    """The claims on each photo in a fixed order, by id; two rows with the same bytes are one photo."""
    claims: dict[str, list[_Photo]] = {}
    for photo in sorted(photos, key=lambda photo: (photo.sha256, photo.row.source, photo.row.path, photo.row.label)):
        claims.setdefault(photo.id, []).append(photo)
    return claims


def _hold_out(
    version: _Version, fresh: dict[str, list[_Photo]], *, is_first: bool, val_share: float, test_share: float, seed: int
) -> None:
    """Give val and test their share of the new photos, unless the delivery brought its own."""
    given = {version.labels[key]["split"] for key in fresh}
    shares = {"test": test_share if is_first else 0.0, "val": val_share}
    for split, share in shares.items():
        if split in given:
            continue
        rows = (version.labels[key] for key in fresh)
        open_labels = {str(row["id"]): str(row["label"]) for row in rows if row["kept"] and row["split"] == "train"}
        for key in hold_out(open_labels, share=share, seed=seed, split=split):
            version.labels[key]["split"] = split


def _reread(fresh: dict[str, list[_Photo]]) -> Iterator[tuple[str, bytes]]:
    for key, (photo, *_) in fresh.items():
        content = photo.row.file.read_bytes()
        if hashlib.sha256(content).hexdigest() != photo.sha256:
            raise BadDelivery(f"{photo.row.file} changed while it was read; ingest when the delivery is complete")
        yield key, content


def _link_shards(base: Path | None, out: Path) -> None:
    if base is not None:
        for shard in sorted((base / "shards").glob("*.tar")):
            link(shard, out / "shards" / shard.name)


def _is_same(base: Path, out: Path) -> bool:
    """Whether the tables are the same bytes: then the delivery brought nothing new, and no version is made of it."""
    names = [f"{name}.parquet" for name in ("index", "labels", "conflicts", "quarantine")]
    return all((base / name).read_bytes() == (out / name).read_bytes() for name in names)


def _hash(config: dict[str, float]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _warnings(out: Path) -> list[str]:
    manifest = read_manifest(out)
    kept = Counter(manifest.label[manifest.kept].tolist())
    train = Counter(manifest.label[manifest.kept & (manifest.split == "train")].tolist())
    single = [
        f"class {label!r} has one photo; it stays in train"
        for label in sorted(kept)
        if kept[label] == train[label] == 1
    ]
    absent = [
        f"class {label!r} has no train photo; it cannot be recognised" for label in sorted(kept) if not train[label]
    ]
    return [*single, *absent]
