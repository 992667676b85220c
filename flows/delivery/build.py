"""From a delivery to the files of a new data version.

One pass over the photos: threads, or the workers of a Dask cluster, decode and hash them, and those that are new go into
shards in the order of their paths. Few photos are in memory at a time; what stays of each is a row of columns.
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
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from flows.data import fingerprints
from flows.data.shards import MAX_BYTES, pack
from flows.delivery.decode import Decoding, Openers
from flows.delivery.merge import NextVersion
from flows.delivery.rows import Refused, read_delivery
from flows.errors import BadDelivery
from flows.workspace.files import link, or_disk_full
from models.data.manifest import TABLES, read_table, tally, write_version

log = logging.getLogger("cleanshelf")

NAMED = 20  # refused rows that are told one by one; quarantine.parquet has them all


@dataclass(frozen=True)
class Merged:
    """What became of a delivery, in numbers of rows, and the new shards, sha256 to md5.

    delivered = added + duplicates + quarantined; `conflicts` of the photos came with several labels, `near` of the new ones are
    kept out because they are nearly photos on the other side of the test split. `quarantined` counts per reason.
    """

    delivered: int
    added: int
    duplicates: int
    conflicts: int
    near: int
    quarantined: dict[str, int]
    shards: dict[str, str]


@dataclass(frozen=True)
class IntakeReport(Merged):
    """The same with the whole new version: its counts, and warnings; `is_new` is False when the base held everything already."""

    counts: dict[str, int]
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
    code: str = "",
    purged: Collection[str] = (),
    max_shard_bytes: int = MAX_BYTES,
    openers: Openers | None = None,
) -> IntakeReport:
    """Read the delivery `source` on top of the version in folder `base` (or none) and write the new one to `out`.

    Photos in `base` keep their split; the same inputs give the same bytes. VERSION.json names `parent`, the id of
    `base`, and `code`, a hash of the source.

    Args:
        val_share, test_share: share in [0, 1) of each class's new train photos that is held out, unless the delivery
            brings a split of that name; test only without a base. `seed` chooses which.
        purged: sha256 of photos that were deleted for good, and are refused.
        openers: who opens the photos; None is threads. It makes no difference to what is written.

    Raises:
        BadDelivery, DiskFull: `out` is gone then.
    """
    shares = {"test": test_share if base is None else 0.0, "val": val_share}
    config = _hash(val_share=val_share, test_share=test_share, seed=seed)
    with or_disk_full(f"ingesting {source}", leaving=out):
        _link_shards(base, out)
        merged = _merge(source, base, out, purged, openers, shares=shares, seed=seed, max_shard_bytes=max_shard_bytes)
        counts = write_version(out, parent=parent, step="ingest", config=config, code=code)
        is_new = base is None or not _is_same(base, out)
    return IntakeReport(**vars(merged), counts=counts, warnings=_warnings(out), is_new=is_new)


def _merge(
    source: Path,
    base: Path | None,
    out: Path,
    purged: Collection[str],
    openers: Openers | None,
    *,
    shares: Mapping[str, float],
    seed: int,
    max_shard_bytes: int,
) -> Merged:
    """Write the tables and the new shards to `out`; the tables in memory go at its end."""
    draft, release_unused = NextVersion.read(base), pa.default_memory_pool().release_unused
    claims, brought = _opened(source, draft, purged, openers, folder=out / "shards", max_shard_bytes=max_shard_bytes)
    for row in brought.refused[:NAMED]:
        log.warning("quarantined: %s, field %s: %s", row.path, row.field, row.reason)
    usable, conflicts = len(claims), draft.take(claims)
    del claims  # a large table goes as soon as the next one is made of it, and the allocator gives it back
    release_unused()
    draft.hold_out(shares=shares, seed=seed)
    near = draft.keep_apart()
    draft.quarantine(brought.refused)
    release_unused()
    draft.write(out, locations=brought.locations)
    return Merged(
        delivered=usable + len(brought.refused),
        added=len(draft.new),
        duplicates=usable - len(draft.new),
        conflicts=conflicts,
        near=near,
        quarantined=dict(Counter(f"{row.field}: {row.reason}" for row in brought.refused)),
        shards=brought.shards,
    )


class _Brought(NamedTuple):
    """Of a delivery: the rows that cannot be used; new shards, sha256 to md5; where the new photos lie (columns of PLACES)."""

    refused: list[Refused]
    shards: dict[str, str]
    locations: pa.Table


def _opened(
    source: Path,
    draft: NextVersion,
    purged: Collection[str],
    openers: Openers | None,
    *,
    folder: Path,
    max_shard_bytes: int,
) -> tuple[pa.Table, _Brought]:
    """What is claimed of the usable photos (columns of CLAIMS), and the rest; in `folder`, the photos that the draft lacks."""
    delivery = read_delivery(source, known=draft.known_labels())
    opening = Decoding.of(delivery)
    packed = pack(opening.new(draft.holds, purged, openers), folder=folder, max_bytes=max_shard_bytes)
    broken, claims = opening.refused(), opening.claims()
    if not len(claims):
        raise BadDelivery(f"{source}: no photo could be decoded; the first is {broken[0].path!r}: {broken[0].reason}")
    return claims, _Brought([*delivery.refused, *broken], packed.shards, opening.locations(packed))


def _link_shards(base: Path | None, out: Path) -> None:
    if base is not None:
        for shard in sorted((base / "shards").glob("*.tar")):
            link(shard, out / "shards" / shard.name)


def _is_same(base: Path, out: Path) -> bool:
    """Whether the delivery brought nothing new; `out` then is `base` to the byte, and no version comes of it."""
    if any(not read_table(base, name=name).equals(read_table(out, name=name)) for name in TABLES):
        return False
    (out / fingerprints.NAME).unlink()  # an earlier release wrote none, or another file; and tables in other bytes
    for name in (
        *(f"{table}.parquet" for table in TABLES),
        fingerprints.NAME,
        fingerprints.FORMER_NAME,
        "VERSION.json",
    ):
        if (base / name).exists():
            shutil.copyfile(base / name, out / name)
    return True


def _hash(**config: float) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _warnings(out: Path) -> list[str]:
    labels = read_table(out, name="labels")
    is_train = pc.and_(labels["kept"], pc.equal(labels["split"], "train"))
    kept, train = (tally(labels["label"].filter(chosen)) for chosen in (labels["kept"], is_train))
    single = [
        f"class {label!r} has one photo; it stays in train"
        for label in sorted(kept)
        if kept[label] == train[label] == 1
    ]
    absent = [
        f"class {label!r} has no train photo; it cannot be recognised" for label in sorted(kept) if not train[label]
    ]
    return [*single, *absent]
