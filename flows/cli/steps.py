"""Verbs for the parts of a retraining that can run alone: clean, publish, promote."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import AsJson, At, NoPromote, Recipe, Set, Weights, app, prepare, resolve, with_weights
from flows.cli.show import pairs, refusals_shown, show


@app.command()
def clean(
    recipe: Recipe = "robust",
    workspace: At = Path("."),
    *,
    overrides: Set,
    weights: Weights = None,
    as_json: AsJson = False,
) -> None:
    """Clean the labels as a retraining by this recipe would. The result is a data version; no model is trained."""
    found = prepare(workspace)
    resolved = resolve(recipe, with_weights(recipe, overrides, weights))
    from flows.clean import clean_data

    content = dataclasses.asdict(clean_data(found, resolved))
    show(content, as_json=as_json, say=lambda: pairs(content))


@app.command()
def publish(
    run: Annotated[
        str, typer.Argument(help="Name of an earlier retraining, as in `model log` and in the folder runs/.")
    ],
    workspace: At = Path("."),
    despite: Annotated[
        str | None,
        typer.Option("--despite", metavar="REASON", help="Publish even if a gate refuses; the reason is recorded."),
    ] = None,
    no_promote: NoPromote = False,
    as_json: AsJson = False,
) -> None:
    """Publish the graph of an earlier run, after judging it again against the current model."""
    found = prepare(workspace)
    from flows.publish import publish_run
    from flows.report.refusal import data_line
    from flows.report.terminal import outcome

    with refusals_shown(as_json=as_json):
        report = publish_run(found, run, despite=despite, promote=not no_promote)
    show(
        dataclasses.asdict(report), as_json=as_json, say=lambda: print(f"data   {data_line(report)}\n{outcome(report)}")
    )


@app.command()
def promote(
    version: Annotated[int, typer.Argument(help="A model version that was registered with --no-promote.")],
    workspace: At = Path("."),
    as_json: AsJson = False,
) -> None:
    """Make a registered model version the current one, if its verdict still holds, without losing a request."""
    found = prepare(workspace)
    from flows.endpoint.server import now_serves
    from flows.promote import promote_version

    done = promote_version(found, version)
    show({"serving": done}, as_json=as_json, say=lambda: print(now_serves(found, done)))
