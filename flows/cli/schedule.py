"""Verbs of a model in use: schedule, drift."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.app import AsJson, At, Recipe, Set, app, prepare
from flows.cli.show import show, table

SHOWN = 10  # runs; --json has all


@app.command()
def schedule(
    recipe: Recipe = "robust",
    workspace: At = Path("."),
    *,
    overrides: Set,
    cron: Annotated[str, typer.Option(help="When to retrain, in UTC; by default 0 3 * * 1.", show_default=False)] = "",
    every: Annotated[str, typer.Option(help="Retrain each so often: 30m, 6h, 7d.", show_default=False)] = "",
    on_new_data: Annotated[bool, typer.Option("--on-new-data", help="Retrain whenever data came in.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of Prefect's page; 0: any that is free.")] = 4200,
    status: Annotated[bool, typer.Option("--status", help="Show the next and the last runs, and end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Retrain by itself until Ctrl-C: by the clock, on new data, or both. What has not changed is skipped."""
    found = prepare(workspace)
    if status:
        from flows.scheduler.schedule import status as look

        seen = look(found)
        return show(seen, as_json=as_json, say=lambda: _say_status(seen))
    from flows.scheduler.schedule import make_plan
    from flows.scheduler.schedule import schedule as run

    run(
        found, make_plan(found, recipe, overrides=overrides, cron=cron, every=every, on_new_data=on_new_data), port=port
    )


def _say_status(seen: dict[str, Any]) -> None:
    if seen["running"]:
        print(
            f"The scheduler runs: {_plan(seen)}; next run {seen['next'] or 'when data come in'}. Prefect: {seen['url']}"
        )
    else:
        print("No scheduler runs; start one with `cleanshelf schedule`.")
    table(("at", "outcome", "why"), seen["runs"][:SHOWN])


def _plan(seen: dict[str, Any]) -> str:
    parts = [f"cron {seen['cron']} (UTC)" if seen["cron"] else "", f"every {seen['every_s']:g} s" if seen["every_s"] else "",
             "on new data" if seen["on_new_data"] else ""]  # fmt: skip
    return f"recipe {seen['recipe']}, {', '.join(filter(None, parts))}"
