"""Verbs for models: retrain, verify, and `model` log, show, rollback."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.app import (
    WORLD,
    AsJson,
    At,
    DryRun,
    NoPromote,
    Recipe,
    Set,
    Weights,
    app,
    find,
    model_verbs,
    prepare,
    resolve,
    watched,
    with_weights,
)
from flows.cli.show import pairs, refusals_shown, show, table

if TYPE_CHECKING:
    from flows.plan import Plan
    from flows.report.run_report import Report


@app.command()
def retrain(
    recipe: Recipe = "robust",
    workspace: At = Path("."),
    *,
    overrides: Set,
    weights: Weights = None,
    no_promote: NoPromote = False,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Train, clean, retrain, re-balance, export one graph, judge it and publish it."""
    found = prepare(workspace)
    resolved = resolve(recipe, with_weights(recipe, overrides, weights))
    from flows.retrain import retrain as run_retraining
    from flows.steps.learn import find_weights
    from flows.steps.start import preview
    from models.recipe.config import to_dict

    if dry_run:
        resolved = find_weights(resolved)
        plan = {"data_version": preview(found, resolved), "recipe": to_dict(resolved)}
        return show(plan, as_json=as_json, say=lambda: pairs(plan))
    with refusals_shown(as_json=as_json):
        report = run_retraining(found, resolved, promote=not no_promote)
    show(dataclasses.asdict(report), as_json=as_json, say=lambda: _print_report(report))


@app.command()
def plan(
    recipe: Recipe = "robust",
    workspace: At = Path("."),
    *,
    overrides: Set,
    weights: Weights = None,
    as_json: AsJson = False,
) -> None:
    """Tell what a retraining would take on this machine, stage by stage, before it starts."""
    found = watched(workspace)
    resolved = resolve(recipe, with_weights(recipe, overrides, weights))
    from flows.plan import plan as make_plan

    made = make_plan(found, resolved)
    show(made.to_dict(), as_json=as_json, say=lambda: _print_plan(made))


def _print_plan(made: Plan) -> None:
    from models.progress import duration

    counts = made.counts
    print(f"data version {made.data_version[:12]}, recipe {made.recipe}: {counts.photos:,} photos of {counts.classes:,} "
          f"classes; train {counts.train:,}, val {counts.val:,}, test {counts.test:,}\n")  # fmt: skip
    rows = [
        {
            "stage": each.step,
            "times": each.times,
            "time": "is there" if each.is_there else duration(each.seconds),
            "memory GB": f"{each.peak_bytes / 1e9:.1f}",
            "disk MB": f"{each.disk_bytes / 1e6:,.0f}",
        }
        for each in made.stages
    ]
    table(("stage", "times", "time", "memory GB", "disk MB"), rows)
    print(f"\nall of it: {duration(made.seconds)}; longest: {made.longest}; shorter with {made.shorter}")


@model_verbs.command("log")
def model_log(workspace: At = Path("."), as_json: AsJson = False) -> None:
    """List the registered models, newest first."""
    from flows.registry.history import advice, model_history

    entries = model_history(find(workspace))
    metrics = ("top1", "mean_class", "head", "middle", "tail")
    columns: tuple[str, ...] = ("version", "serving", *metrics, "data_version", "data_withdrawn", "recipe", "run")
    if any(entry["override"] for entry in entries):
        columns += ("despite", "by")
    rows = [
        {**entry, **entry["metrics"], "data_version": entry["data_version"][:12]}
        | ({"despite": entry["override"]["reason"], "by": entry["override"]["by"]} if entry["override"] else {})
        for entry in entries
    ]

    def say() -> None:
        table(columns, rows)
        if line := advice(entries):
            print(line)

    show(entries, as_json=as_json, say=say)


@model_verbs.command("show")
def model_show(
    model: Annotated[str | None, typer.Argument(metavar="VERSION|FILE", help="By default the current model.")] = None,
    workspace: At = Path("."),
    as_json: AsJson = False,
) -> None:
    """Show the lineage and the card of a version, or the card of an ONNX file, which needs no workspace."""
    from flows.registry.card import read_card

    if model is not None and not model.isdecimal():
        card = read_card(Path(model))
        return show(card, as_json=as_json, say=lambda: _print_card(card))
    from flows.registry.history import model_lineage
    from flows.registry.repository import repository

    found = find(workspace)
    lineage = model_lineage(found, None if model is None else int(model))
    card = read_card(repository(found).path(lineage["version"]) / "model.onnx")
    show(lineage | {"card": card}, as_json=as_json, say=lambda: _print_version(lineage, card))


@model_verbs.command("rollback")
def model_rollback(
    version: Annotated[int | None, typer.Argument(help="By default the model before the current one.")] = None,
    workspace: At = Path("."),
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Make an earlier model the current one again without losing a request. The data are not touched."""
    from flows.endpoint.server import now_serves
    from flows.rollback import rollback_model, rollback_target

    found = find(workspace)
    if dry_run:
        plan = {"would_serve": rollback_target(found, version)}
        return show(plan, as_json=as_json, say=lambda: pairs(plan))
    done = rollback_model(found, version)
    show({"serving": done}, as_json=as_json, say=lambda: print(now_serves(found, done)))


def _print_version(lineage: dict[str, Any], card: dict[str, Any]) -> None:
    pairs(lineage)
    print()
    _print_card(card)


def _print_card(card: dict[str, Any]) -> None:
    from flows.registry.card import ACCURACY, MEMBER, summary

    pairs(summary(card))
    print()
    table(MEMBER, card.get("members", []))
    print()
    table(ACCURACY, [card["metrics"]] if "metrics" in card else [])


def _print_report(report: Report) -> None:
    from flows.report.terminal import print_report

    print_report(report)


@app.command()
def verify(
    version: Annotated[
        int | None, typer.Argument(metavar="MODEL_VERSION", help="By default the current model.")
    ] = None,
    workspace: At = Path("."),
    as_json: AsJson = False,
) -> None:
    """Check every link from a model's number to its bytes, to what is served, and to what it was made from."""
    from flows.verify import verify as check

    found = check(watched(workspace), version)
    lines = [*map(str, found.broken), *(f"no longer here: {path}" for path in found.gone)]
    if not found.broken:
        lines.append(f"every link of model version {found.version} holds")
    show(dataclasses.asdict(found), as_json=as_json, say=lambda: print("\n".join(lines)))
    if found.broken:
        raise typer.Exit(WORLD)
