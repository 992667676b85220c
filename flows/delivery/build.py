"""Builds the files of a new data version from a delivery.

One pass over the photos: threads, or the workers of a Dask cluster, decode and hash them, and new photos go into shards
in the order of their paths. Few photos are in memory at a time; each leaves one row in a table.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contract.labels import MISSING
from durable import link
from flows.data import fingerprints, near
from flows.data.shards import MAX_BYTES, pack
from flows.delivery.accounts import Accounts, account, class_splits
from flows.delivery.decode import Decoding, Openers
from flows.delivery.merge import NextVersion
from flows.delivery.near import LIMIT, notes
from flows.delivery.rows import Delivery, Refused, read_delivery
from flows.errors import BadDelivery, DiskFull
from flows.workspace.files import or_disk_full
from models.data.manifest import TABLES, class_counts, read_table, write_version

log = logging.getLogger("cleanshelf")

NAMED = 20  # refused rows that are logged one by one; quarantine.parquet has them all
FEW = 5  # classes that a line about many names
SAMPLED = 1000  # photos whose sizes tell that of a whole delivery


@dataclass(frozen=True)
class Merged:
    """Result of merging a delivery: numbers of rows, and the new shards (SHA-256 to MD5).

    delivered = added + labelled + duplicates + quarantined. labelled: photos of the base that get their first label.
    conflicts: photos with several labels. near: photos that are left out because they are near-duplicates of photos on
    the other side of the test split. quarantined: numbers per reason.
    """

    delivered: int
    added: int
    labelled: int
    duplicates: int
    conflicts: int
    near: int
    quarantined: dict[str, int]
    shards: dict[str, str]
    accounts: Accounts

    def in_words(self) -> str:
        """The numbers in one line: first the parts that add up to the rows, then the photos that are left out."""
        rows = f"{self.added} new photos{self._first_labels}, {self.duplicates} duplicates"
        rows += f", {sum(self.quarantined.values())} quarantined"
        return f"{self.delivered} rows: {rows}; left out: {self.conflicts} in conflict, {self.near} near-duplicates"

    @property
    def message(self) -> str:
        """The photos that changed, in words, for the history."""
        return f"{self.added} photos added" + self._first_labels

    @property
    def _first_labels(self) -> str:
        return f", {self.labelled} photos with their first label" if self.labelled else ""


@dataclass(frozen=True)
class IntakeReport(Merged):
    """Result of an ingestion: the merge, and counts, splits (`class_splits`) and warnings of the new version.

    is_new: False if the base held everything already.
    """

    counts: dict[str, int]
    splits: dict[str, Any]
    warnings: list[str]
    is_new: bool


def build_version(
    source: Path,
    *,
    base: Path | None,
    out: Path,
    parent: str | None = None,
    val_share: float = 0.1,
    test_share: float = 0.2,
    seed: int = 0,
    near_duplicates: float | None = LIMIT,
    code: str = "",
    purged: Collection[str] = (),
    max_shard_bytes: int = MAX_BYTES,
    openers: Openers | None = None,
    unlabelled: bool = False,
) -> IntakeReport:
    """Adds the delivery `source` to the version in folder `base`, if there is one, and writes the new version to `out`.

    Photos in `base` keep their split. The same inputs give the same bytes. VERSION.json names `parent`, the id of
    `base`, and `code`, a hash of the source code.

    Args:
        val_share, test_share: share in [0, 1) of each class's new train photos that is held out, unless the delivery
            brings a split of that name; test photos are held out only while no photo of the base has a label.
        seed: determines which photos are held out.
        near_duplicates: limit of their difference (`flows.delivery.near`); None leaves none of them out.
        purged: SHA-256 of photos that were deleted for good, and are refused.
        openers: open the photos; None stands for threads. The choice does not change the result.
        unlabelled: take all photos below the folder `source` as photos without a label.

    Raises:
        BadDelivery, DiskFull: `out` is removed.
    """
    shares = {"test": test_share, "val": val_share}
    config = _hash(val_share=val_share, test_share=test_share, seed=seed, near_duplicates=near_duplicates)
    with or_disk_full(f"ingesting {source}", leaving=out):
        _link_shards(base, out)
        merged = _merge(source, base, out, purged, openers, shares=shares, seed=seed, near_duplicates=near_duplicates,
                        max_shard_bytes=max_shard_bytes, unlabelled=unlabelled)  # fmt: skip
        counts = write_version(out, parent=parent, step="ingest", config=config, code=code)
        is_new = base is None or not _is_same(base, out)
    classes = class_counts(read_table(out, name="labels"))
    return IntakeReport(
        **vars(merged),
        counts=counts,
        splits=class_splits(classes),
        warnings=[*_warnings(classes), *notes(out)],
        is_new=is_new,
    )


def _merge(
    source: Path,
    base: Path | None,
    out: Path,
    purged: Collection[str],
    openers: Openers | None,
    *,
    shares: Mapping[str, float],
    seed: int,
    near_duplicates: float | None,
    max_shard_bytes: int,
    unlabelled: bool,
) -> Merged:
    """Writes the tables and the new shards to `out`."""
    version, release_unused = NextVersion.read(base), pa.default_memory_pool().release_unused
    claims, rest = _decoded(source, version, purged, openers, folder=out / "shards", max_shard_bytes=max_shard_bytes,
                            unlabelled=unlabelled)  # fmt: skip
    for row in rest.refused[:NAMED]:
        log.warning("quarantined: %s", row)
    usable, conflicts = len(claims), version.add(claims)
    del claims  # frees a large table as early as possible; the allocator returns the memory
    release_unused()
    version.hold_out(shares=shares, seed=seed)
    locations = version.locations(rest.locations)
    num_near = version.separate_near_duplicates(out, locations, limit=near_duplicates)
    version.quarantine(rest.refused)
    release_unused()
    version.write(out, locations=locations)
    return Merged(
        delivered=usable + len(rest.refused),
        added=len(version.new) - len(version.labelled),
        labelled=len(version.labelled),
        duplicates=usable - len(version.new),
        conflicts=conflicts,
        near=num_near,
        quarantined=dict(Counter(f"{row.field}: {row.reason}" for row in rest.refused)),
        shards=rest.shards,
        accounts=account(rest.delivery, version.decision, usable=usable, quarantined=len(rest.refused)),
    )


class _Rest(NamedTuple):
    """Refused rows of a delivery, new shards (SHA-256 to MD5), and locations of new photos (columns of LOCATIONS)."""

    delivery: Delivery
    refused: list[Refused]
    shards: dict[str, str]
    locations: pa.Table


def _decoded(
    source: Path,
    version: NextVersion,
    purged: Collection[str],
    openers: Openers | None,
    *,
    folder: Path,
    max_shard_bytes: int,
    unlabelled: bool,
) -> tuple[pa.Table, _Rest]:
    """Writes new photos to shards in `folder`; the claims on all usable photos (columns of CLAIMS), and the rest."""
    delivery = read_delivery(source, known=version.known_labels(), unlabelled=unlabelled)
    if not len(version.base["index"]):
        _require_room(delivery, folder.parents[1])
    decoding = Decoding.of(delivery)
    packed = pack(decoding.new(version.holds, purged, openers), folder=folder, max_bytes=max_shard_bytes)
    broken, claims = decoding.refused(), decoding.claims()
    if not len(claims):
        raise BadDelivery(f"{source}: no photo could be decoded; the first is {broken[0].path!r}: {broken[0].reason}")
    return claims, _Rest(delivery, [*delivery.refused, *broken], packed.shards, decoding.locations(packed))


def _require_room(delivery: Delivery, disk: Path) -> None:
    """Raises DiskFull if a first delivery has more bytes than its disk has left, by the sizes of some photos of it."""
    paths = pc.unique(delivery.rows["path"])
    places = [round(each) for each in np.linspace(0, len(paths) - 1, min(len(paths), SAMPLED))]
    sizes = [
        file.stat().st_size for path in paths.take(places).to_pylist() if (file := delivery.folder / path).is_file()
    ]
    needed, free = len(paths) * sum(sizes) / max(len(places), 1), shutil.disk_usage(disk).free
    if needed > free:
        raise DiskFull(
            f"{delivery.folder}: its photos take about {needed / 1e9:.1f} GB, and the disk of {disk} has {free / 1e9:.1f} GB "
            "left; free some space and run it again"
        )


def _link_shards(base: Path | None, out: Path) -> None:
    if base is not None:
        for shard in sorted((base / "shards").glob("*.tar")):
            link(shard, out / "shards" / shard.name)


def _is_same(base: Path, out: Path) -> bool:
    """True if the delivery brought nothing new. Then `out` becomes `base` to the byte, so that its id is the same."""
    if any(not read_table(base, name=name).equals(read_table(out, name=name)) for name in TABLES):
        return False
    (out / fingerprints.NAME).unlink()  # an earlier release wrote none, or another file; and tables in other bytes
    for name in (
        *(f"{table}.parquet" for table in TABLES),
        fingerprints.NAME,
        fingerprints.FORMER_NAME,
        near.NAME,
        "VERSION.json",
    ):
        if (base / name).exists():
            shutil.copyfile(base / name, out / name)
    return True


def _hash(**config: float | None) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _warnings(classes: pa.Table) -> list[str]:
    kept = pc.subtract(classes["photos"], classes["left_out"])
    present = classes.append_column("kept", kept).filter(pc.greater(kept, 0)).to_pylist()
    single = [each["class"] for each in present if each["kept"] == each["train"] == 1]
    absent = [each["class"] for each in present if not each["train"]]
    missing = [
        f"class {each['class']!r} is how programs write a missing value; if it is not a product, deliver without its rows"
        for each in present
        if each["class"].casefold() in MISSING
    ]
    lines = [
        *_in_one_line(single, "has one photo; it stays in train", "have one photo, which stays in train"),
        *_in_one_line(
            absent, "has no train photo; it cannot be recognised", "have no train photo and cannot be recognised"
        ),
    ]
    return [*lines, *_first(missing)]


def _in_one_line(classes: list[str], one: str, many: str) -> list[str]:
    """One line about all of these classes, which names a few of them; none without any."""
    if len(classes) < 2:
        return [f"class {name!r} {one}" for name in classes]
    named = ", ".join(map(repr, classes[:FEW])) + (", ..." if len(classes) > FEW else "")
    return [f"{len(classes):,} classes {many}: {named}"]


def _first(lines: list[str]) -> list[str]:
    """The first NAMED lines, and how many more there are."""
    more = [f"{len(lines) - NAMED:,} more notes of this kind"] if len(lines) > NAMED else []
    return [*lines[:NAMED], *more]
