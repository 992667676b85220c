"""Verbs to get to know CleanShelf: losses, doctor, demo."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import WORLD, AsJson, At, app, find, set_up_logging
from flows.cli.show import show, table


@app.command()
def losses(
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the tables of docs/reference/losses.md.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the losses that a recipe may name: formula, parameters, needs, source."""
    from models.losses.catalogue import catalogue, markdown, outline

    if as_markdown:
        return print(markdown())
    columns = ("loss", "formula", "parameters", "needs", "source")
    show([dataclasses.asdict(e) for e in catalogue()], as_json=as_json, say=lambda: table(columns, outline()))


@app.command()
def doctor(workspace: At = Path("."), as_json: AsJson = False) -> None:
    """Check that everything that CleanShelf needs is installed and works."""
    from flows.doctor import examine
    from flows.errors import WorkspaceMissing

    try:
        found = find(workspace)
    except WorkspaceMissing:
        found = None
    findings = [dataclasses.asdict(finding) for finding in examine(found)]
    show(findings, as_json=as_json, say=lambda: table(("part", "ok", "detail"), findings))
    if not all(finding["ok"] for finding in findings):
        raise typer.Exit(WORLD)


@app.command()
def demo(workspace: At = Path("build/demo"), as_json: AsJson = False) -> None:
    """Run the whole pipeline on drawn sample products, in a workspace of its own."""
    from flows.sample.workspace import fresh_workspace

    found = fresh_workspace(workspace.absolute())
    set_up_logging(found.state)
    from flows.demo import run_demo

    with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
        done = run_demo(found)
    show(dataclasses.asdict(done), as_json=as_json, say=lambda: None)
