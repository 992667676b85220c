"""Commands that look after stored data: `data` verify, gc, push, pull, purge."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import WORLD, AsJson, At, DryRun, Version, data_verbs, watched
from flows.cli.show import pairs, show

Every = Annotated[bool, typer.Option("--all", help="All versions of the history instead of one.")]
Refs = Annotated[str, typer.Option(metavar="REMOTE", help="Also exchange the histories and tags with this git remote.")]


@data_verbs.command("verify")
def data_verify(
    version: Version = "selected",
    workspace: At = Path("."),
    every: Every = False,
    heal: Annotated[bool, typer.Option("--heal", help="Repair whatever an intact copy allows.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Skip shards that have not changed since they were last read.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check every link from a version's name to its bytes: tag, entry, pointer, listing, cache, remote, copies."""
    from flows.data.versions import DataVersions

    found = watched(workspace)
    versions, names = DataVersions(found), () if every else (version,)
    if heal:
        from flows.workspace import DATA_LOCK

        with found.lock("data verify --heal", name=DATA_LOCK):
            versions.repair()
            versions.heal(*names)
    broken = versions.verify(*names, reread=not quick)
    show([dataclasses.asdict(each) for each in broken], as_json=as_json,
         say=lambda: print("\n".join(map(str, broken)) or "every link holds"))  # fmt: skip
    if broken:
        raise typer.Exit(WORLD)


@data_verbs.command("gc")
def data_gc(workspace: At = Path("."), as_json: AsJson = False, dry_run: DryRun = False) -> None:
    """Free what no version needs: cached files, unfinished folders, copies that no run reads, maps. The remote is untouched."""
    from flows.data.garbage import find_unused, free
    from flows.data.versions import DataVersions
    from flows.map.maps import LOCK, Maps

    found = watched(workspace)
    with found.idle("data gc"), found.lock("data gc", name=LOCK):
        versions = DataVersions(found)
        if not dry_run:
            versions.repair()
        unused = find_unused(versions)
        unused += Maps(found).unused(each.path for each in unused)
        if not dry_run:
            free(unused)
    total = sum(each.bytes for each in unused)
    outcome = f"{len(unused)} files and folders, {total / 1e6:.1f} MB {'could be' if dry_run else 'are'} freed"
    lines = [f"{each.path}: {each.why}, {each.bytes} bytes" for each in unused]
    show(
        [dataclasses.asdict(each) for each in unused], as_json=as_json, say=lambda: print("\n".join([*lines, outcome]))
    )


@data_verbs.command("push")
def data_push(
    version: Version = "selected",
    workspace: At = Path("."),
    every: Every = False,
    refs: Refs = "",
    as_json: AsJson = False,
) -> None:
    """Make sure that DVC's remote holds every byte of a version."""
    from flows.data.versions import DataVersions
    from flows.workspace import DATA_LOCK

    found = watched(workspace)
    with found.lock("data push", name=DATA_LOCK):
        versions = DataVersions(found)
        versions.repair()
        versions.push(*() if every else (version,))
        if refs:
            versions.ledger.push(refs)
    done = {"pushed": "all" if every else versions.resolve(version), "refs": refs or None}
    line = "the remote holds every byte" + (f"; {refs} has the history" if refs else "")
    show(done, as_json=as_json, say=lambda: print(line))


@data_verbs.command("pull")
def data_pull(
    version: Version = "selected",
    workspace: At = Path("."),
    every: Every = False,
    refs: Refs = "",
    as_json: AsJson = False,
) -> None:
    """Fetch a version from DVC's remote into the cache and verify every byte. A missing data/ is restored."""
    from flows.data.versions import DataVersions
    from flows.workspace import DATA_LOCK

    found = watched(workspace)
    with found.lock("data pull", name=DATA_LOCK):
        versions = DataVersions(found)
        versions.repair()
        if refs:
            versions.ledger.fetch(refs)
        versions.pull(*() if every else (version,))
    done = {"pulled": "all" if every else versions.resolve(version), "refs": refs or None}
    show(done, as_json=as_json, say=lambda: print("the cache holds every byte"))


@data_verbs.command("purge")
def data_purge(
    photos: Annotated[
        list[str],
        typer.Argument(
            default_factory=list,
            show_default=False,
            help="Ids or SHA-256 of photos; with none, completes an interrupted purge.",
        ),
    ],
    workspace: At = Path("."),
    yes: Annotated[bool, typer.Option("--yes", help="Really delete the photos for good.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete photos for good, from every version, the cache and the remote. Without --yes, list what is affected."""
    from flows.data.versions import DataVersions
    from flows.errors import Unconfirmed
    from flows.purge import affected, complete, purge

    found = watched(workspace)
    versions = DataVersions(found)
    with found.idle("data purge"):
        complete(versions)
        if not photos:
            return show({"unfinished": False}, as_json=as_json, say=lambda: print("no purge is left unfinished"))
        concerned = dataclasses.asdict(affected(versions, photos))
        if not as_json:
            pairs(concerned)
        if not yes:
            way_out = "run the command again with --yes to delete these photos for good"
            raise Unconfirmed(f"nothing was deleted; {way_out}", affected=concerned)
        purge(versions, photos)
    show(concerned, as_json=as_json, say=lambda: None)
