"""The learning stages as Prefect tasks: each runs models in a child process and gives the folder of its result."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

from flows.launch import run_child
from flows.run import Run, sha256
from flows.settings import num_workers
from flows.stage import stage
from models.config import Recipe, to_dict

log = logging.getLogger("cleanshelf")


def check(recipe: Recipe, data: Path) -> None:
    """Sees that the recipe can be trained on the data version in folder `data`; it takes seconds, and leaves nothing.

    Raises:
        InputError: naming the recipe's key, or what the data lack.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.json"
        file.write_text(json.dumps(to_dict(recipe)), encoding="utf-8")
        run_child("models.check", ["--data", data, "--recipe", file], say=log.debug)


@stage("train member {member}")
def train(run: Run, data: Path, member: int) -> Path:
    """One member on all kept photos: network.pt, and scores.parquet of the validation and test photos."""
    recipe = run.recipe
    parts = (recipe.members[member], recipe.loss, recipe.train.decisive, recipe.augment, recipe.export.input_size,
             recipe.clean.weighing)  # fmt: skip
    return _train(
        run, data, member, name=f"train-{member + 1}-{recipe.members[member].backbone}", parts=parts, fold=None
    )


@stage("score fold {fold}")
def score_fold(run: Run, data: Path, fold: int) -> Path:
    """Scores of one fold of the training photos, by a network that never saw them."""
    recipe, member = run.recipe, run.recipe.clean.member
    parts: tuple[object, ...]
    parts = (recipe.members[member], recipe.loss, recipe.train.decisive, recipe.augment, recipe.export.input_size,
             recipe.clean.weighing, recipe.clean.folds, recipe.clean.epochs, fold)  # fmt: skip
    if recipe.clean.asks_embeddings:
        parts += ("embeddings",)
    return _train(run, data, member, name=f"fold-{fold}", parts=parts, fold=fold)


def _train(run: Run, data: Path, member: int, *, name: str, parts: tuple[object, ...], fold: int | None) -> Path:
    settings = run.recipe.train
    started_from = [
        _content(run.recipe.members[member].weights),
        _content(settings.state),
        _content(settings.photo_weights),
    ]
    meta = run.recipe.meta

    def work(out: Path) -> None:
        arguments = ["--data", data, "--recipe", run.recipe_file, "--member", member, "--out", out]
        if fold is not None:
            arguments += ["--fold", fold]
        run_child("models.train", arguments, say=_say(name), workers=num_workers(settings.workers))

    return run.stage(name, data.name, started_from, meta, meta.file, *parts, work=work)


def _content(path: str) -> str:
    """Names a file by what it holds, so that a new one of the same name is another start."""
    return sha256(Path(path)) if path and Path(path).is_file() else path


@stage("balance member {member}")
def balance(run: Run, data: Path, member: int, trained: Path) -> Path:
    """The member with its classifier re-balanced and tau chosen on validation photos."""
    recipe = run.recipe
    name = f"balance-{member + 1}-{recipe.members[member].backbone}"

    def work(out: Path) -> None:
        arguments = [
            "--data",
            data,
            "--recipe",
            run.recipe_file,
            "--network",
            trained / "network.pt",
            "--member",
            member,
        ]
        run_child("models.decoupling", [*arguments, "--out", out], say=_say(name))

    seed = recipe.members[member].seed
    return run.stage(name, data.name, trained.name, recipe.balance, recipe.export.input_size, seed, work=work)


def _say(name: str) -> Callable[[str], None]:
    """Lines of a child process go to the log, behind the stage's name."""
    return lambda line: log.info("%s: %s", name, line)
