"""The learning stages as Prefect tasks: each gives the folder of its result; what is heavy runs in a child process."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from durable import sha256
from flows.run.launch import num_workers, run_child
from flows.run.run import Run
from flows.run.step import step
from models.data.manifest import read_manifest
from models.data.trusted import selection_photos, with_selection_photos
from models.evaluation.scores import read_scores
from models.recipe.config import Recipe, to_dict
from models.training.ensemble import choose_weights

log = logging.getLogger("cleanshelf")


def check(recipe: Recipe, data: Path) -> None:
    """Sees that the recipe can be trained on the data version in folder `data`; it takes seconds, and leaves nothing.

    Raises:
        InputError: naming the recipe's key, or what the data lack.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.json"
        file.write_text(json.dumps(to_dict(recipe)), encoding="utf-8")
        run_child("models.training.check", ["--data", data, "--recipe", file], say=log.debug)


@step("train member {member}")
def train(run: Run, data: Path, member: int) -> Path:
    """One member on all kept photos: network.pt, and scores.parquet of the validation and test photos."""
    return _train(run, data, member, name=_name("train", run, member))


@step("score fold {fold}")
def score_fold(run: Run, data: Path, fold: int) -> Path:
    """Scores of one fold of the training photos, by a network that never saw them."""
    settings = run.recipe.clean
    parts = [settings.folds, settings.epochs, fold, *(["embeddings"] if settings.asks_embeddings else [])]
    return _train(run, data, settings.member, name=f"fold-{fold}", parts=parts, options=["--fold", fold])


@step("fine-tune member {member}")
def finetune(run: Run, data: Path, member: int, trained: Path) -> Path:
    """The member trained on at a larger size: network.pt and scores.parquet, as of a training."""
    return _train(run, data, member, name=_name("finetune", run, member), module="models.training.finetune",
                  parts=[trained.name, run.recipe.finetune], options=["--network", trained / "network.pt"])  # fmt: skip


def _train(
    run: Run, data: Path, member: int, *, name: str, module: str = "models.training.train", parts: Sequence[object] = (),
    options: Sequence[object] = (),
) -> Path:  # fmt: skip
    """A training of a member, which depends on its own part of the recipe and on `parts`."""
    own = run.recipe.of(member)
    files = [own.members[0].weights, own.train.state, own.train.photo_weights]
    contents = [*(_content(path) for path in files), own.meta.file, own.proof.file]

    def work(out: Path) -> None:
        arguments = ["--data", data, "--recipe", run.recipe_file, "--member", member, "--out", out, *options]
        run_child(module, arguments, say=_say(name), workers=num_workers(own.train.workers))

    return run.cached(name, data.name, contents, own.meta, own.members[0], own.loss, own.train.decisive, own.augment,
                     own.clean.weighing, own.export.input_size, *parts, work=work)  # fmt: skip


def _name(what: str, run: Run, member: int) -> str:
    return f"{what}-{member + 1}-{run.recipe.members[member].backbone}"


def _content(path: str) -> str:
    """Names a file by what it holds, so that a new one of the same name is another start."""
    return sha256(Path(path)) if path and Path(path).is_file() else path


@step("balance member {member}")
def balance(run: Run, data: Path, member: int, trained: Path) -> Path:
    """The member with its classifier re-balanced and tau chosen on validation photos."""
    recipe = run.recipe
    name = _name("balance", run, member)

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
        run_child("models.training.decoupling", [*arguments, "--out", out], say=_say(name))

    seed = recipe.members[member].seed
    return run.cached(name, data.name, trained.name, recipe.balance, recipe.proof.file, recipe.proof.confidence,
                     recipe.export.input_size, seed, work=work)  # fmt: skip


@step("ensemble")
def ensemble(run: Run, data: Path, balanced: list[Path]) -> Path:
    """What each member counts, with the evidence: ensemble.json."""
    settings = run.recipe.ensemble

    def work(out: Path) -> None:
        manifest = with_selection_photos(read_manifest(data), run.recipe.proof.photos)
        judging = manifest.id[selection_photos(manifest)].astype(str)
        scores = [read_scores(folder / "scores.parquet") for folder in balanced]
        choice = choose_weights([each.select(np.isin(each.id, judging)) for each in scores], method=settings.method,
                        confidence=run.recipe.proof.confidence)  # fmt: skip
        log.info("ensemble, %s: members count %s", settings.method, ", ".join(f"{w:.2f}" for w in choice.weights))
        content = json.dumps({"method": settings.method} | choice.to_dict(), indent=1, allow_nan=False)
        (out / "ensemble.json").write_text(content, encoding="utf-8")

    names, proof = [folder.name for folder in balanced], run.recipe.proof
    return run.cached("ensemble", data.name, names, settings, proof.file, proof.confidence, work=work)


@step("choose crops")
def choose_crops(run: Run, data: Path, balanced: list[Path], chosen: Path) -> Path:
    """How the graph will look at a photo, with the evidence: crops.json."""
    networks = [folder / "network.pt" for folder in balanced]

    def work(out: Path) -> None:
        arguments = ["--data", data, "--recipe", run.recipe_file, "--ensemble", chosen / "ensemble.json", "--out", out]
        run_child("models.export.crops", [*arguments, "--networks", *networks], say=_say("crops"))

    names, proof = [folder.name for folder in (*balanced, chosen)], run.recipe.proof
    return run.cached("crops", data.name, names, run.recipe.export, proof.file, proof.confidence, work=work)


@step("calibrate")
def calibrate(run: Run, data: Path, balanced: list[Path], chosen: Path, crops: Path) -> Path:
    """How sure the graph may be, and what it takes for a product of the assortment, with the evidence: calibration.json."""
    networks = [folder / "network.pt" for folder in balanced]

    def work(out: Path) -> None:
        arguments = ["--data", data, "--recipe", run.recipe_file, "--ensemble", chosen / "ensemble.json", "--out", out]
        arguments += ["--crops", crops / "crops.json"]
        run_child("models.export.calibrate", [*arguments, "--networks", *networks], say=_say("calibrate"))

    names = [folder.name for folder in (*balanced, chosen, crops)]
    return run.cached("calibrate", data.name, names, run.recipe.export, run.recipe.proof.file, work=work)


def _say(name: str) -> Callable[[str], None]:
    """Lines of a child process go to the log, behind the stage's name."""
    return lambda line: log.info("%s: %s", name, line)
