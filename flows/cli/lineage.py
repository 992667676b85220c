"""Verb of what a model was made of: verify."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import WORLD, AsJson, At, app, find
from flows.cli.show import show


@app.command()
def verify(
    version: Annotated[
        int | None, typer.Argument(metavar="MODEL_VERSION", help="By default the one that serves.")
    ] = None,
    workspace: At = Path("."),
    as_json: AsJson = False,
) -> None:
    """Check every link from a model's number to its bytes, to what is served, and to what it was made of."""
    from flows.lineage import verify as follow

    found = follow(find(workspace), version)
    lines = [*map(str, found.broken), *(f"not here any more: {path}" for path in found.gone)]
    if not found.broken:
        lines.append(f"every link of model version {found.version} holds")
    show(dataclasses.asdict(found), as_json=as_json, say=lambda: print("\n".join(lines)))
    if found.broken:
        raise typer.Exit(WORLD)
