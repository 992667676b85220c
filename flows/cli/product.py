"""Commands that add or remove a product without training: enrol, withdraw."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.app import AsJson, At, DryRun, app, setting, watched
from flows.cli.show import show

GateSet = Annotated[list[str], setting("a key of [gate], e.g. gate.enrol=0.02")]
Label = Annotated[str, typer.Argument(help="The product's name.")]


@app.command()
def enrol(
    label: Label,
    images: Annotated[list[Path], typer.Argument(help="Photos of the product; five are much better than one.")],
    workspace: At = Path("."),
    *,
    overrides: GateSet,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Add a product to the current model from a few photos, in seconds."""
    from flows.enrol import enrol_product

    done = enrol_product(watched(workspace), label, images, overrides=overrides, dry_run=dry_run)
    show(dataclasses.asdict(done), as_json=as_json, say=lambda: _print(done))


@app.command()
def withdraw(
    label: Label,
    workspace: At = Path("."),
    *,
    overrides: GateSet,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Remove a product from the current model."""
    from flows.enrol import withdraw_product

    done = withdraw_product(watched(workspace), label, overrides=overrides, dry_run=dry_run)
    show(dataclasses.asdict(done), as_json=as_json, say=lambda: _print(done))


def _print(done: Any) -> None:
    """Prints the change, and what the next retraining will do with it."""
    enrolled = done.step == "enrol"
    if done.model_version is None:
        verb = "added" if enrolled else "removed"
        return print(
            f"{done.label} can be {verb}, which makes {done.products} products; the gate did not judge, and nothing "
            "was changed"
        )
    print(
        f"model version {done.model_version} is the current model instead of {done.parent}: {done.label} "
        f"{f'is known from {len(done.photos)} photos' if enrolled else 'is gone'}, {done.products} products"
    )
    for reason in done.reasons:
        print(f"  {reason}")
    print(
        "The next retraining forgets this product unless its photos are in a delivery by then."
        if enrolled
        else "The next retraining brings it back as long as the data have photos of it."
    )
    print("The gate of a retraining compares products by label.")
