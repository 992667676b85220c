"""Deletes photos for good: `cleanshelf data purge`.

    new shards to the cache -> record -> new shards to the remote -> selected version replaced -> old shards deleted
    -> decisions of people deleted -> record completed

Before the record is written, only the cache has changed. After that, the next purge completes a killed one.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace

from flows.data.objects import Listing, Objects
from flows.data.purge_record import Purged, find_photos, remove, rewrite
from flows.data.versions import DataVersions
from flows.endpoint.recent import Recent
from flows.registry.versions import ModelVersions
from flows.report.html.page import forget
from flows.review.decisions import NAME as DECISIONS
from flows.review.decisions import Decisions
from flows.review.inbox import Inbox
from flows.review.photos import HEX
from flows.workspace.files import or_disk_full
from flows.workspace.ledger import Ledger


@dataclass(frozen=True)
class Affected:
    """Effect of a purge: photos (SHA-256), data versions (ids) that lose them, and models trained on those versions."""

    photos: tuple[str, ...]
    data_versions: tuple[str, ...]
    models: tuple[int, ...]


def affected(versions: DataVersions, photos: Sequence[str]) -> Affected:
    """Effect that a purge of these photos (ids or SHA-256) would have; changes nothing.

    Raises:
        UnknownPhoto: no version holds one of them.
    """
    with versions.store.objects() as objects:
        listings = _listings(versions, objects)
        found = find_photos(objects, listings.values(), photos)
    purged = Purged.read(versions.ledger)
    held = {each.shard for locations in found.values() for each in locations}
    shards = {f"shards/{name}.tar" for shard in held for name in (shard, purged.present_name(shard))}
    ids = tuple(version for version, listing in listings.items() if shards & listing.files.keys())
    models = tuple(
        entry.version for entry in ModelVersions(Ledger(versions.workspace.root)).log() if entry.data_version in ids
    )
    return Affected(tuple(sorted(found)), ids, models)


def purge(versions: DataVersions, photos: Sequence[str]) -> None:
    """Deletes the photos (ids or SHA-256) from every version, the cache and the remote. The caller holds the lock.

    Raises:
        UnknownPhoto, LocalEdits, DiskFull: nothing was changed.
        MissingFromRemote: the remote cannot be reached; the next purge continues from here.
    """
    versions.repair()
    versions.check_clean()
    staging = versions.new_folder()
    with or_disk_full("rewriting shards", leaving=staging), versions.store.objects() as objects:
        listings = _listings(versions, objects).values()
        found = find_photos(objects, listings, photos)
        record = rewrite(objects, listings, found, earlier=Purged.read(versions.ledger), staging=staging)
    record.write(versions.ledger)
    complete(versions)


def complete(versions: DataVersions) -> None:
    """Completes the purge on record, if it was interrupted."""
    versions.confirm()
    purged = Purged.read(versions.ledger)
    if purged.complete:
        return
    with versions.store.objects() as objects:
        for new in purged.shards.values():
            if new.shard not in purged.shards:
                objects.keep(new.md5, name=f"shards/{new.shard}.tar")
    if selected := versions.selected():
        versions.commit_without(purged, selected)
    with versions.store.objects() as objects:
        remove(objects, versions.workspace.versions, _listings(versions, objects), purged)
    ids = [photo[:HEX] for photo in purged.photos]
    if (versions.workspace.state / DECISIONS).exists():
        Decisions(versions.workspace.state).forget(ids)
    if versions.workspace.maps.exists():  # a point on a map is data about a photo
        shutil.rmtree(versions.workspace.maps)
    Inbox(versions.workspace.state).forget(purged.photos)
    Recent(versions.workspace.state).forget(purged.photos)
    forget(versions.workspace.runs, set(ids))
    replace(purged, complete=True).write(versions.ledger)


def _listings(versions: DataVersions, objects: Objects) -> dict[str, Listing]:
    return {version: objects.listing(version) for version in versions.known()}
