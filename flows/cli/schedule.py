"""The command of scheduled retraining: schedule."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.app import AsJson, At, Recipe, Set, Weights, app, find, resolve, set_up_logging, with_weights
from flows.cli.show import show, table

SHOWN = 10  # runs in the table; --json has all


@app.command()
def schedule(
    recipe: Recipe = "robust",
    workspace: At = Path("."),
    *,
    overrides: Set,
    weights: Weights = None,
    cron: Annotated[str, typer.Option(help="Cron expression, in UTC; default 0 3 * * 1.", show_default=False)] = "",
    every: Annotated[str, typer.Option(help="Period between retrainings: 30m, 6h, 7d.", show_default=False)] = "",
    on_new_data: Annotated[bool, typer.Option("--on-new-data", help="Retrain whenever data arrive.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of Prefect's web page; 0 for any free one.")] = 4200,
    status: Annotated[bool, typer.Option("--status", help="Show the next run and the last ones, and exit.")] = False,
    as_json: AsJson = False,
) -> None:
    """Retrain automatically until Ctrl-C, by the clock, on new data, or both; skipped while nothing has changed."""
    found = find(workspace)
    if status:
        from flows.scheduler.record import status as read_status

        state = read_status(found)
        return show(state, as_json=as_json, say=lambda: _print_status(state))
    overrides = with_weights(recipe, overrides, weights)
    resolve(recipe, overrides)  # before the seconds that an import of Prefect takes
    set_up_logging(found.state)
    from flows.scheduler.plan import make_plan

    plan = make_plan(found, recipe, overrides=overrides, cron=cron, every=every, on_new_data=on_new_data)
    from flows.scheduler.schedule import schedule as run

    if as_json:
        show(asdict(plan), as_json=True, say=lambda: None)
    run(found, plan, port=port)


def _print_status(state: dict[str, Any]) -> None:
    if state["running"]:
        due = state["next"] or "when data arrive"
        print(f"The scheduler is running: {_plan(state)}; next run {due}. Prefect: {state['url']}")
    else:
        print("No scheduler is running; start one with `cleanshelf schedule`.")
    table(("at", "outcome", "why"), state["runs"][:SHOWN])


def _plan(state: dict[str, Any]) -> str:
    parts = [
        f"cron {state['cron']} (UTC)" if state["cron"] else "",
        f"every {state['every_s']:g} s" if state["every_s"] else "",
        "on new data" if state["on_new_data"] else "",
    ]
    return f"recipe {state['recipe']}, {', '.join(filter(None, parts))}"
