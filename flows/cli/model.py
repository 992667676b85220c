"""Verbs of the models: retrain, and `model` log, show, rollback."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.app import AsJson, At, DryRun, NoPromote, Recipe, Set, app, find, model_verbs, prepare
from flows.cli.show import pairs, show, table


@app.command()
def retrain(
    recipe: Recipe = "robust",
    workspace: At = Path("."),
    *,
    overrides: Set,
    no_promote: NoPromote = False,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Train, clean, retrain, re-balance, export one graph, judge it, publish it."""
    found = prepare(workspace)
    from models.config import load_recipe, to_dict

    resolved = load_recipe(recipe, overrides=overrides)
    from flows.retrain import retrain as flow
    from flows.start import preview

    if dry_run:
        plan = {"data_version": preview(found, resolved), "recipe": to_dict(resolved)}
        return show(plan, as_json=as_json, say=lambda: pairs(plan))
    report = flow(found, resolved, promote=not no_promote)
    show(dataclasses.asdict(report), as_json=as_json, say=lambda: _say_report(report))


@model_verbs.command("log")
def model_log(workspace: At = Path("."), as_json: AsJson = False) -> None:
    """The published models, newest first."""
    from flows.rollback import advice, model_history

    entries = model_history(find(workspace))
    measured = ("top1", "mean_class", "head", "middle", "tail")
    columns = ("version", "serving", *measured, "data_version", "data_withdrawn", "recipe", "run")
    rows = [{**e, **e["metrics"], "data_version": e["data_version"][:12]} for e in entries]

    def say() -> None:
        table(columns, rows)
        if line := advice(entries):
            print(line)

    show(entries, as_json=as_json, say=say)


@model_verbs.command("show")
def model_show(
    model: Annotated[
        str | None, typer.Argument(metavar="VERSION|FILE", help="By default the version that serves.")
    ] = None,
    workspace: At = Path("."),
    as_json: AsJson = False,
) -> None:
    """One model: the lineage of a version, and its card; of an ONNX file the card, which needs no workspace."""
    from flows.card import read_card

    if model is not None and not model.isdecimal():
        card = read_card(Path(model))
        return show(card, as_json=as_json, say=lambda: _say_card(card))
    from flows.endpoint import repository
    from flows.rollback import model_lineage

    found = find(workspace)
    lineage = model_lineage(found, None if model is None else int(model))
    card = read_card(repository(found).path(lineage["version"]) / "model.onnx")
    show(lineage | {"card": card}, as_json=as_json, say=lambda: _say_version(lineage, card))


@model_verbs.command("rollback")
def model_rollback(
    version: Annotated[int | None, typer.Argument(help="By default the one that served before.")] = None,
    workspace: At = Path("."),
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Let an earlier model answer again, without a request lost. The data are not touched."""
    from flows.rollback import rollback_model, rollback_target

    found = find(workspace)
    if dry_run:
        plan = {"would_serve": rollback_target(found, version)}
        return show(plan, as_json=as_json, say=lambda: pairs(plan))
    done = rollback_model(found, version)
    show({"serving": done}, as_json=as_json, say=lambda: print(f"model version {done} answers"))


def _say_version(lineage: dict[str, Any], card: dict[str, Any]) -> None:
    pairs(lineage)
    print()
    _say_card(card)


def _say_card(card: dict[str, Any]) -> None:
    from flows.card import ACCURACY, MEMBER, summary

    pairs(summary(card))
    print()
    table(MEMBER, card.get("members", []))
    print()
    table(ACCURACY, [card["metrics"]] if "metrics" in card else [])


def _say_report(report: Any) -> None:
    from flows.progress import print_report

    print_report(report)
