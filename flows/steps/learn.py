"""The steps that learn, as Prefect tasks. Each returns the folder of its result; the heavy work runs in a child process."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from flows.run.launch import num_parallel, num_workers, run_child
from flows.run.run import ResultCache, Run, code_hash
from flows.run.step import step, together
from flows.settings import LOCAL, Settings
from flows.steps.learnable import learnable
from flows.workspace.results import Balanced, Calibration, Crops, DataFolder, Fold, Served, Trained, Weights
from models.data.manifest import read_manifest
from models.data.trusted import selection_photos, with_selection_photos
from models.evaluation.scores import read_scores
from models.recipe.config import Recipe, from_dict, to_dict, training_inputs
from models.training.ensemble import choose_weights

log = logging.getLogger("cleanshelf")
TRAINED = ("network.pt", "scores.parquet")  # files of a Trained
BALANCED = (*TRAINED, "balance.json")  # files of a Balanced


def check(recipe: Recipe, data: Path) -> None:
    """Checks within seconds that the recipe can be trained on a data version. Leaves no files.

    Raises:
        InputError: it cannot; the message names the key of the recipe, or what the data or this machine lack.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.json"
        file.write_text(json.dumps(to_dict(recipe)), encoding="utf-8")
        here = ["--present", present_bytes(data)] if Settings().dask in ("", LOCAL) else []
        trainings = max(len(recipe.members), recipe.clean.folds if recipe.clean.rounds else 1)
        run_child("models.training.check", ["--data", data, "--recipe", file, *here], say=log.debug,
                  side_by_side=side_by_side(trainings))  # fmt: skip


def present_bytes(data: Path) -> int:
    """Bytes of the results that earlier runs left in the workspace of this data version."""
    stages = data.resolve().parents[1] / "runs" / "stages"
    return sum(file.stat().st_size for file in stages.glob("*/*") if file.is_file())


def find_weights(recipe: Recipe) -> Recipe:
    """The recipe with the hash of the weights that each member starts from, which all trainings of a run demand.

    timm's own weights are downloaded if this machine does not have them.

    Raises:
        InputError: weights are not available; the message names the ways out.
    """
    if not any((recipe.distil.weights, *(member.weights for member in recipe.members))):
        return recipe
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "asked.json").write_text(json.dumps(to_dict(recipe)), encoding="utf-8")
        run_child("models.training.weights", ["--recipe", folder / "asked.json", "--out", folder], say=log.info)
        return from_dict(json.loads((folder / "recipe.json").read_text(encoding="utf-8")))


def train_members(run: Run, labels: Sequence[DataFolder]) -> list[Trained]:
    """All members trained side by side, each on the labels of its own data version."""
    return together([train.submit(run, data, member) for member, data in enumerate(labels)])


def finetune_members(run: Run, labels: Sequence[DataFolder], networks: Sequence[Trained]) -> list[Trained]:
    """All members fine-tuned side by side."""
    pairs = zip(labels, networks, strict=True)
    return together([finetune.submit(run, data, member, trained) for member, (data, trained) in enumerate(pairs)])


def balance_members(run: Run, labels: Sequence[DataFolder], networks: Sequence[Trained]) -> list[Balanced]:
    """All members re-balanced side by side."""
    pairs = zip(labels, networks, strict=True)
    return together([balance.submit(run, data, member, trained) for member, (data, trained) in enumerate(pairs)])


@step("train member {member}")
def train(run: Run, data: DataFolder, member: int) -> Trained:
    """One member on all kept photos: network.pt, and scores.parquet of the validation and test photos."""
    return Trained(_train(run, data, member, name=_name("train", run, member)))


@step("score fold {fold}")
def score_fold(run: Run, data: DataFolder, fold: int) -> Fold:
    """Scores of one fold of the training photos, by a network that was not trained on them."""
    member = run.recipe.clean.member
    return Fold(_train(run, data, member, name=f"fold-{fold}", parts=_fold_parts(run, fold), options=["--fold", fold]))


def _fold_parts(run: Run, fold: int) -> list[object]:
    settings = run.recipe.clean
    parts: list[object] = [settings.folds, settings.epochs, fold, *(["embeddings"] if settings.asks_embeddings else [])]
    if settings.asks_embeddings:
        for number in run.recipe.other_encoders:
            parts += training_inputs(run.recipe.of(number))
    return parts


def is_trained(run: Run, data: DataFolder, member: int, *, fold: int | None = None) -> bool:
    """True if a training of the member on these labels, or for this fold, has a result, which is not verified here."""
    name = _name("train", run, member) if fold is None else f"fold-{fold}"
    parts = [] if fold is None else _fold_parts(run, fold)
    folder = ResultCache(run.workspace).folder(name, *_inputs(run, data, member), *parts)
    return (folder / "done.json").exists()


def _inputs(run: Run, data: DataFolder, member: int) -> list[object]:
    """Everything that a training of a member depends on, besides its own parts."""
    return [learnable(data), *training_inputs(run.recipe.of(member))]


@step("fine-tune member {member}")
def finetune(run: Run, data: DataFolder, member: int, trained: Trained) -> Trained:
    """The member trained further at a larger size: network.pt and scores.parquet, as `train` leaves them."""
    folder = _train(run, data, member, name=_name("finetune", run, member), module="models.training.finetune",
                    parts=[trained.name, run.recipe.finetune], options=["--network", trained / "network.pt"])  # fmt: skip
    return Trained(folder)


def _train(
    run: Run,
    data: DataFolder,
    member: int,
    *,
    name: str,
    module: str = "models.training.train",
    parts: Sequence[object] = (),
    options: Sequence[object] = (),
) -> Path:
    """The folder of a training of a member, which depends on its own part of the recipe and on `parts`."""
    own = run.recipe.of(member)
    of = run.recipe.clean.folds if "--fold" in options else len(run.recipe.members)

    def work(out: Path) -> None:
        arguments = ["--data", data, "--recipe", run.recipe_file, "--member", member, "--out", out, *options]
        arguments += ["--features", shared_features(run)]
        workers = num_workers(own.train.workers)
        run_child(module, arguments, say=say(name), title=name, on_gpu=True, workers=workers,
                  side_by_side=side_by_side(of, workers=workers))  # fmt: skip

    files = ["scores.parquet"] if "--fold" in options else TRAINED
    return run.cached(name, *_inputs(run, data, member), *parts, files=files, work=work)


def side_by_side(of: int, *, workers: int = 1) -> int:
    """The number of trainings that run at a time on this machine, if `of` are to be run by `workers` processes each."""
    return min(of, num_parallel(Settings().parallel, workers=workers))


def shared_features(run: Run) -> Path:
    """The folder of the features of frozen backbones, which trainings of one source share."""
    return run.workspace.runs / "features" / code_hash()


def _name(work: str, run: Run, member: int) -> str:
    return f"{work}-{member + 1}-{run.recipe.members[member].backbone}"


@step("balance member {member}")
def balance(run: Run, data: DataFolder, member: int, trained: Trained) -> Balanced:
    """The member with its classifier re-balanced and tau chosen on validation photos."""
    recipe = run.recipe
    name = _name("balance", run, member)

    def work(out: Path) -> None:
        arguments = ["--data", data, "--recipe", run.recipe_file, "--network", trained / "network.pt"]
        arguments += ["--member", member, "--out", out, "--features", shared_features(run)]
        run_child("models.training.decoupling", arguments, say=say(name), title=name, on_gpu=True,
                  side_by_side=side_by_side(len(recipe.members)))  # fmt: skip

    seed = recipe.members[member].seed
    folder = run.cached(name, data.name, trained.name, recipe.balance, recipe.proof.file, recipe.proof.confidence,
                        recipe.export.input_size, seed, files=BALANCED, work=work)  # fmt: skip
    return Balanced(Trained(folder))


@step("weigh members")
def weigh_members(run: Run, data: DataFolder, balanced: list[Balanced]) -> Weights:
    """The weight of each member, with the measurements: ensemble.json."""
    settings = run.recipe.ensemble

    def work(out: Path) -> None:
        manifest = with_selection_photos(read_manifest(data), run.recipe.proof.photos)
        scores, selected = [read_scores(folder / "scores.parquet") for folder in balanced], selection_photos(manifest)
        scores = [each.select(selected[manifest.rows_of(each.id)]) for each in scores]
        choice = choose_weights(scores, method=settings.method, confidence=run.recipe.proof.confidence)
        log.info(
            "ensemble, %s: weights of the members %s", settings.method, ", ".join(f"{w:.2f}" for w in choice.weights)
        )
        content = json.dumps({"method": settings.method} | choice.to_dict(), indent=1, allow_nan=False)
        (out / "ensemble.json").write_text(content, encoding="utf-8")

    names, proof = [folder.name for folder in balanced], run.recipe.proof
    folder = run.cached("ensemble", data.name, names, settings, proof.file, proof.confidence,
                        files=["ensemble.json"], work=work)  # fmt: skip
    return Weights(folder)


@step("choose crops")
def choose_crops(run: Run, data: DataFolder, served: Served) -> Crops:
    """The number of crops and their enlargement, with the measurements: crops.json."""
    networks = [folder / "network.pt" for folder in served.networks]

    def work(out: Path) -> None:
        arguments = ["--data", data, "--recipe", run.recipe_file, "--ensemble", served.weights / "ensemble.json"]
        arguments += ["--out", out]
        run_child("models.export.crops", [*arguments, "--networks", *networks], say=say("crops"), on_gpu=True,
                  workers=num_workers(0))  # fmt: skip

    names, proof = [folder.name for folder in (*served.networks, served.weights)], run.recipe.proof
    folder = run.cached("crops", data.name, names, run.recipe.export, run.recipe.train.decode, proof.file,
                        proof.confidence, files=["crops.json"], work=work)  # fmt: skip
    return Crops(folder)


@step("calibrate")
def calibrate(run: Run, data: DataFolder, served: Served, crops: Crops) -> Calibration:
    """The temperature of the probabilities and the fit of the score `known`: calibration.json, discriminants.npz."""
    networks = [folder / "network.pt" for folder in served.networks]

    def work(out: Path) -> None:
        arguments = ["--data", data, "--recipe", run.recipe_file, "--ensemble", served.weights / "ensemble.json"]
        arguments += ["--crops", crops / "crops.json", "--out", out]
        run_child("models.export.calibrate", [*arguments, "--networks", *networks], say=say("calibrate"), on_gpu=True,
                  workers=num_workers(0))  # fmt: skip

    names = [folder.name for folder in (*served.networks, served.weights, crops)]
    folder = run.cached("calibrate", data.name, names, run.recipe.export, run.recipe.train.decode,
                        run.recipe.proof.file, files=["calibration.json", "discriminants.npz"], work=work)  # fmt: skip
    return Calibration(folder)


def say(name: str) -> Callable[[str], None]:
    """A function that logs the lines of a child process after the name of its step."""
    return lambda line: log.info("%s: %s", name, line)
