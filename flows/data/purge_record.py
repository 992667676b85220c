"""Record of the purged photos, and the shards that replace those which held them.

Versions share shards. A shard with a purged photo is rewritten with zeros in the photo's place, so the offsets of the
other photos stay the same. The record on refs/data/purged says which shard replaces which. So an earlier version can
still be selected, without the photos and as a version of its own. A purged photo is refused when it is delivered again.
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import durable
from durable import link, sync
from flows.data import near
from flows.data.columns import to_numpy
from flows.data.fingerprints import FORMER_NAME, NAME, Fingerprints
from flows.data.objects import Listing, Objects, is_shard
from flows.data.shards import Location
from flows.errors import UnknownPhoto
from flows.workspace.ledger import Ledger
from models.data.manifest import read_table, write_table, write_version

REF = "refs/data/purged"
SHORTEST = 16  # hex digits of a SHA-256 that identify a photo: its id


class Rewritten(NamedTuple):
    """A shard (SHA-256) that replaces an old one, its MD5, and the MD5 of the old one, which has to be deleted."""

    shard: str
    md5: str
    old_md5: str


@dataclass(frozen=True)
class Purged:
    """The record: all purged photos (SHA-256), the replacement of each shard (SHA-256) that held one, and its state.

    complete: the old shards are deleted.
    """

    photos: tuple[str, ...] = ()
    shards: Mapping[str, Rewritten] = field(default_factory=dict)
    complete: bool = True

    @classmethod
    def read(cls, ledger: Ledger) -> Purged:
        """The present record; empty if nothing was ever purged."""
        if ledger.tip(REF) is None:
            return cls()
        facts = json.loads(ledger.read(REF, "purged.json"))
        shards = {old: Rewritten(*new) for old, new in facts["shards"].items()}
        return cls(tuple(facts["photos"]), shards, facts["complete"])

    def write(self, ledger: Ledger) -> None:
        """Adds an entry to the record's history."""
        text = json.dumps(asdict(self), sort_keys=True, indent=1) + "\n"
        message = f"purge: {len(self.photos)} photos in all" + ("" if self.complete else ", under way")
        ledger.commit(REF, {"purged.json": text.encode()}, message=message)

    def affects(self, listing: Listing) -> bool:
        """True if the version holds a shard that was replaced."""
        return any(self.is_replaced(name) for name in listing.files)

    def is_replaced(self, name: str) -> bool:
        """True if the file `name` of a version is a shard that was replaced."""
        return name in {_path(old) for old in self.shards}

    def replacement(self, shard: str) -> Rewritten | None:
        """The present replacement of `shard`, after any number of purges; None if it was never replaced."""
        found = None
        while shard in self.shards:
            found = self.shards[shard]
            shard = found.shard
        return found

    def present_name(self, shard: str) -> str:
        """Present name of `shard`: that of its replacement, or its own."""
        found = self.replacement(shard)
        return found.shard if found else shard


def find_photos(objects: Objects, listings: Iterable[Listing], wanted: Iterable[str]) -> dict[str, set[Location]]:
    """Locations of the wanted photos (ids or SHA-256) in the shards of all versions, by SHA-256 of the photo.

    Raises:
        UnknownPhoto: no version holds one of them, or its name is too short.
    """
    names: dict[str, list[str]] = {}  # by their first digits, which are the id of a photo
    for name in wanted:
        names.setdefault(name.lower()[:SHORTEST], []).append(name.lower())
    found: dict[str, set[Location]] = {}
    missing = dict.fromkeys(name for same in names.values() for name in same)
    for md5 in {listing.files["index.parquet"] for listing in listings}:
        table = pq.read_table(objects.get(md5, name="index.parquet"))
        ids = pc.utf8_slice_codeunits(table["sha256"], 0, SHORTEST)
        for row in table.filter(pc.is_in(ids, value_set=pa.array(list(names), pa.string()))).to_pylist():
            for name in filter(row["sha256"].startswith, names[row["sha256"][:SHORTEST]]):
                missing.pop(name, None)
                found.setdefault(row["sha256"], set()).add(Location(row["shard"], row["offset"], row["size"]))
    if missing:
        raise UnknownPhoto(
            f"no data version holds a photo {next(iter(missing))!r}; give its id (16 digits) or its SHA-256, as in "
            "index.parquet"
        )
    return found


def rewrite(
    objects: Objects,
    listings: Iterable[Listing],
    photos: Mapping[str, set[Location]],
    *,
    earlier: Purged,
    staging: Path,
) -> Purged:
    """Writes shards without these photos to the cache; the record `earlier` with the photos added, not yet complete."""
    md5s = {Path(name).stem: md5 for listing in listings for name, md5 in listing.files.items() if is_shard(name)}
    md5s |= {new.shard: new.md5 for new in earlier.shards.values()}
    holes: dict[str, set[tuple[int, int]]] = {}
    for found in set().union(*photos.values()):
        holes.setdefault(earlier.present_name(found.shard), set()).add((found.offset, found.size))
    shards = {old: _rewrite(objects, old, md5s[old], holes[old], staging=staging) for old in sorted(holes)}
    return Purged(tuple(sorted({*earlier.photos, *photos})), {**earlier.shards, **shards}, complete=False)


def _rewrite(objects: Objects, old: str, old_md5: str, holes: Iterable[tuple[int, int]], *, staging: Path) -> Rewritten:
    part = staging / f"{old}.tar"
    shutil.copyfile(objects.get(old_md5, name=_path(old)), part)
    _blank(part, holes)
    new = Rewritten(durable.sha256(part), durable.md5(part), old_md5)
    kept = objects.path(new.md5)
    kept.parent.mkdir(parents=True, exist_ok=True)
    part.chmod(0o444)
    os.replace(part, kept)
    sync(kept.parent)
    return new


def _blank(tar: Path, holes: Iterable[tuple[int, int]]) -> None:
    """Overwrites the photos with zeros and their names with `purged`; the tar keeps its structure."""
    with tar.open("r+b") as file:
        for offset, size in holes:
            info = tarfile.TarInfo("purged")
            info.size = size
            file.seek(offset - tarfile.BLOCKSIZE)
            file.write(info.tobuf(tarfile.USTAR_FORMAT) + bytes(size))
    sync(tar)


def write_variant(objects: Objects, version: str, purged: Purged, *, folder: Path) -> None:
    """Writes the version without its purged photos to `folder`, as a new version whose parent it is."""
    for name, md5 in objects.listing(version).files.items():
        new = purged.replacement(Path(name).stem) if is_shard(name) else None
        name, md5 = (_path(new.shard), new.md5) if new else (name, md5)
        link(objects.get(md5, name=name), folder / name)
    gone = pa.array([sha256[:SHORTEST] for sha256 in purged.photos])
    for name in ("index", "labels", "conflicts"):
        table = read_table(folder, name=name)
        table = table.filter(pc.invert(pc.is_in(table["id"], value_set=gone)))
        columns = {column: table[column] for column in table.column_names}
        if name == "index":
            columns["shard"] = _renamed(columns["shard"], purged)
        (folder / f"{name}.parquet").unlink()  # never write through a hard link into the cache
        write_table(folder, columns, name=name)
    pairs = near.read_pairs(folder / near.NAME)
    (folder / near.NAME).unlink(missing_ok=True)
    is_gone = pc.or_(*(pc.is_in(pairs[column], value_set=gone) for column in ("id", "near")))
    near.write_pairs(folder, pairs.filter(pc.invert(is_gone)))
    fingerprints = Fingerprints.read(folder)
    for name in (NAME, FORMER_NAME):
        (folder / name).unlink(missing_ok=True)
    if len(fingerprints.id):
        fingerprints.select(~np.isin(fingerprints.id, to_numpy(pa.chunked_array([gone]), SHORTEST))).write(folder)
    (folder / "VERSION.json").unlink()
    write_version(folder, parent=version, step="purge")


def _renamed(shards: pa.ChunkedArray, purged: Purged) -> pa.ChunkedArray:
    old = pc.unique(shards)
    new = [purged.present_name(shard) for shard in old.to_pylist()]
    return pc.take(pa.array(new, pa.string()), pc.index_in(shards, value_set=old))


def remove(objects: Objects, versions: Path, listings: Mapping[str, Listing], purged: Purged) -> None:
    """Deletes the old shards, if they still exist, from the cache, the remote and the copies in folder `versions`."""
    for version, listing in listings.items():
        if purged.affects(listing):
            shutil.rmtree(versions / version, ignore_errors=True)
    for _, _, old in purged.shards.values():
        kept = objects.path(old)
        kept.unlink(missing_ok=True)
        if kept.parent.exists():
            sync(kept.parent)
        objects.remote.remove(old)
    sync(versions)


def _path(shard: str) -> str:
    return f"shards/{shard}.tar"
