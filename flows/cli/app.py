"""Groups of verbs, the options that they share, and the workspace that they work on."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from flows.workspace import Workspace
    from models.recipe.config import Recipe as ResolvedRecipe

# Help is plain text: rich would take [gate], [clean] and other brackets for its own marks and leave them out.
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="From noisy product photos to a Triton endpoint that recognises them, and back again.")  # fmt: skip
data_verbs = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Data versions: log, show, diff, rollback, verify, gc, push, pull, purge.",
)
model_verbs = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Model versions: log, show, rollback.")
review_verbs = typer.Typer(rich_markup_mode=None, help="Label issues: review them in a browser; export, import, save.")
app.add_typer(data_verbs, name="data")
app.add_typer(model_verbs, name="model")
app.add_typer(review_verbs, name="review")

At = Annotated[Path, typer.Option("--workspace", "-w", envvar="CLEANSHELF_WORKSPACE", help="Folder of the workspace.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document, also of an error.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would happen and change nothing.")]
Recipe = Annotated[str, typer.Argument(help="A recipe's name, or the path of a .toml file.")]


def setting(what: str) -> Any:
    """The option --set, which may be given several times; `what` completes its help."""
    return typer.Option(
        "--set", metavar="KEY=VALUE", default_factory=list, show_default=False, help=f"Override {what}."
    )


Set = Annotated[list[str], setting("a recipe key, e.g. train.epochs=3")]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="FILE|pretrained",
        show_default=False,
        help='What the backbone of every member starts from: a file, timm\'s own weights, or "" for random ones.',
    ),
]
NoPromote = Annotated[
    bool, typer.Option("--no-promote", help="Only register the model; `cleanshelf promote` makes it the current one.")
]
Version = Annotated[str, typer.Argument(help="The first digits of a data version's id, or `selected`.")]

INPUT, WORLD, GATE = 2, 3, 4  # exit codes
CACHES = {"MPLCONFIGDIR": "matplotlib", "NUMBA_CACHE_DIR": "numba"}  # variables, and folders in the folder `state`


def find(workspace: Path) -> Workspace:
    """The workspace at this folder or above it, which from now on has what libraries would keep in the user's home.

    Raises:
        WorkspaceMissing: there is none.
    """
    from flows.workspace import Workspace

    found = Workspace.find(workspace)
    os.environ |= {name: str(found.state / folder) for name, folder in CACHES.items()}
    return found


def prepare(workspace: Path) -> Workspace:
    """The workspace, with logging and Prefect set up for it. Call it before Prefect is imported."""
    found = find(workspace)
    set_up_logging(found.state)
    return found


def resolve(recipe: str, overrides: Sequence[str]) -> ResolvedRecipe:
    """The recipe with its overrides, checked as far as takes no time: its keys, and the names of its backbones.

    Raises:
        ConfigError: an unknown recipe, key, value or backbone.
    """
    from models.networks.backbones import check_backbones
    from models.recipe.config import load_recipe

    resolved = load_recipe(recipe, overrides=overrides)
    check_backbones(resolved)
    return resolved


def with_weights(recipe: str, overrides: Sequence[str], weights: str | None) -> list[str]:
    """The overrides after those that give every member these weights, so that `--set members.N.weights` still counts."""
    from models.errors import ConfigError
    from models.recipe.config import load_recipe
    from models.recipe.learning import PRETRAINED

    if weights is None:
        return list(overrides)
    if weights not in ("", PRETRAINED):
        if not Path(weights).is_file():
            raise ConfigError(
                f"--weights {weights}: there is no such file; correct the path, write {PRETRAINED} for timm's own weights, or "
                '"" for random ones'
            )
        weights = str(Path(weights).absolute())
    given = json.dumps(weights)
    members = range(len(load_recipe(recipe).members))
    return [*(f"members.{member}.weights={given}" for member in members), *overrides]


def log_to_stderr() -> None:
    """Prints progress to the terminal, without Prefect."""
    from flows.report.terminal import show_progress

    show_progress()


def watched(workspace: Path) -> Workspace:
    """The workspace, for a verb that may take long: its log lines and its progress go to the terminal, without Prefect."""
    found = find(workspace)
    log_to_stderr()
    return found


def set_up_logging(state: Path) -> None:
    """Prints progress to the terminal, and puts Prefect's home into the workspace."""
    from flows.orchestrator.isolation import prepare_prefect
    from flows.report.terminal import show_progress

    prepare_prefect(state)
    show_progress()
