"""Verbs of what keeps the data: `data` verify."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import WORLD, AsJson, At, Version, data_verbs, find
from flows.cli.show import show


@data_verbs.command("verify")
def data_verify(
    version: Version = "selected",
    workspace: At = Path("."),
    every: Annotated[bool, typer.Option("--all", help="Every version of the history, not one.")] = False,
    heal: Annotated[bool, typer.Option("--heal", help="Put right what an intact copy allows.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Trust shards that have not changed since last read.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check every link from a version's name to its bytes: tag, entry, pointer, listing, cache, remote, copies."""
    from flows.data_version import DataVersions

    found = find(workspace)
    versions, names = DataVersions(found), () if every else (version,)
    if heal:
        with found.lock("data verify --heal"):
            versions.repair()
            versions.heal(*names)
    broken = versions.verify(*names, anew=not quick)
    show([dataclasses.asdict(each) for each in broken], as_json=as_json,
         say=lambda: print("\n".join(map(str, broken)) or "every link holds"))  # fmt: skip
    if broken:
        raise typer.Exit(WORLD)
