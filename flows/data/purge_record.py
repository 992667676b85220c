"""Photos that must be gone for good, from every version that held them.

Versions share shards, so a shard that holds such a photo is written once more with nothing in the photo's place; offsets of the
others stay. The record on refs/data/purged says which shard stands for which, so that an earlier version can still be
selected: without the photos, as a version of its own. A photo that is on record is refused when it is delivered again.
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
from durable import sync
from flows.data.columns import to_numpy
from flows.data.fingerprints import FORMER_NAME, NAME, Fingerprints
from flows.data.objects import Listing, Objects, is_shard
from flows.data.shards import Placed
from flows.errors import UnknownPhoto
from flows.workspace.files import link
from flows.workspace.ledger import Ledger
from models.data.manifest import read_table, write_table, write_version

REF = "refs/data/purged"
SHORTEST = 16  # digits of a sha256 that name a photo: its id


class Rewritten(NamedTuple):
    """The shard (sha256) that stands for an old one, its md5, and the md5 of the old one, whose bytes have to go."""

    shard: str
    md5: str
    old_md5: str


@dataclass(frozen=True)
class Purged:
    """All photos purged so far (sha256), what stands for each shard (sha256) that held one, and whether those are gone."""

    photos: tuple[str, ...] = ()
    shards: Mapping[str, Rewritten] = field(default_factory=dict)
    complete: bool = True

    @classmethod
    def read(cls, ledger: Ledger) -> Purged:
        """The record; an empty one where nothing was ever purged."""
        if ledger.tip(REF) is None:
            return cls()
        facts = json.loads(ledger.read(REF, "purged.json"))
        shards = {old: Rewritten(*new) for old, new in facts["shards"].items()}
        return cls(tuple(facts["photos"]), shards, facts["complete"])

    def write(self, ledger: Ledger) -> None:
        """One more entry of the record's history."""
        text = json.dumps(asdict(self), sort_keys=True, indent=1) + "\n"
        message = f"purge: {len(self.photos)} photos in all" + ("" if self.complete else ", under way")
        ledger.commit(REF, {"purged.json": text.encode()}, message=message)

    def concerns(self, listing: Listing) -> bool:
        """Whether the version holds a shard that had to go."""
        return any(self.is_gone(name) for name in listing.files)

    def is_gone(self, name: str) -> bool:
        """Whether the file `name` of a version is a shard that had to go."""
        return name in {_path(old) for old in self.shards}

    def stands_for(self, shard: str) -> Rewritten | None:
        """What is there now in place of `shard`; None where it never had to go."""
        found = None
        while shard in self.shards:
            found = self.shards[shard]
            shard = found.shard
        return found

    def now(self, shard: str) -> str:
        """The name under which what is left of `shard` is kept."""
        found = self.stands_for(shard)
        return found.shard if found else shard


def find_photos(objects: Objects, listings: Iterable[Listing], wanted: Iterable[str]) -> dict[str, set[Placed]]:
    """Where in which shards the photos lie that these ids or sha256 name, over all versions; by sha256.

    Raises:
        UnknownPhoto: no version holds one of them, or its name is too short.
    """
    names = [name.lower() for name in wanted]
    found: dict[str, set[Placed]] = {}
    for md5 in {listing.files["index.parquet"] for listing in listings}:
        table = pq.read_table(objects.get(md5, name="index.parquet"))
        mask = np.logical_or.reduce([pc.starts_with(table["sha256"], name).to_numpy() for name in names])
        for row in table.filter(pa.array(mask)).to_pylist():
            found.setdefault(row["sha256"], set()).add(Placed(row["shard"], row["offset"], row["size"]))
    for name in names:
        if len(name) < SHORTEST or not any(sha256.startswith(name) for sha256 in found):
            raise UnknownPhoto(f"no data version holds a photo {name!r}; name it by its id (16 digits) or its sha256")
    return found


def rewrite(
    objects: Objects,
    listings: Iterable[Listing],
    photos: Mapping[str, set[Placed]],
    *,
    earlier: Purged,
    staging: Path,
) -> Purged:
    """The record `earlier` with these photos, not complete; the shards without them are in the cache."""
    md5s = {Path(name).stem: md5 for listing in listings for name, md5 in listing.files.items() if is_shard(name)}
    md5s |= {new.shard: new.md5 for new in earlier.shards.values()}
    holes: dict[str, set[tuple[int, int]]] = {}
    for place in set().union(*photos.values()):
        holes.setdefault(earlier.now(place.shard), set()).add((place.offset, place.size))
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
    """Zeros for the photos, and no name; the tar keeps its form."""
    with tar.open("r+b") as file:
        for offset, size in holes:
            info = tarfile.TarInfo("purged")
            info.size = size
            file.seek(offset - tarfile.BLOCKSIZE)
            file.write(info.tobuf(tarfile.USTAR_FORMAT) + bytes(size))
    sync(tar)


def write_variant(objects: Objects, version: str, purged: Purged, *, folder: Path) -> None:
    """Into `folder`: the version without its purged photos; a further version, whose parent it is."""
    for name, md5 in objects.listing(version).files.items():
        new = purged.stands_for(Path(name).stem) if is_shard(name) else None
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
    fingerprints = Fingerprints.read(folder)
    for name in (NAME, FORMER_NAME):
        (folder / name).unlink(missing_ok=True)
    if len(fingerprints.id):
        fingerprints.select(~np.isin(fingerprints.id, to_numpy(pa.chunked_array([gone]), SHORTEST))).write(folder)
    (folder / "VERSION.json").unlink()
    write_version(folder, parent=version, step="purge")


def _renamed(shards: pa.ChunkedArray, purged: Purged) -> pa.ChunkedArray:
    old = pc.unique(shards)
    new = [purged.now(shard) for shard in old.to_pylist()]
    return pc.take(pa.array(new, pa.string()), pc.index_in(shards, value_set=old))


def remove(objects: Objects, versions: Path, listings: Mapping[str, Listing], purged: Purged) -> None:
    """The old shards out of the cache, the remote and the copies in folder `versions`; what is gone already is no error."""
    for version, listing in listings.items():
        if purged.concerns(listing):
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
