"""Distillation: the ensemble answers train and unlabelled photos, a student learns that, and is kept if it loses little."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

from flows.run.launch import num_workers, run_child
from flows.run.run import Run
from flows.run.step import step, together
from flows.steps.learn import TRAINED, say
from flows.steps.selection import SelectionPhotos, in_words
from flows.workspace.results import Answers, DataFolder, Served, Trained, Weights
from models.data.manifest import read_manifest
from models.data.trusted import selection_photos, with_selection_photos
from models.evaluation.bootstrap import gain
from models.evaluation.scores import mean, read_scores

log = logging.getLogger("cleanshelf")
ANSWERS = ("classes.npy", "probs.npy", "answers.json")  # files of an Answers


def distil(run: Run, data: DataFolder, ensemble: Served) -> Served:
    """The student of the ensemble, if it is good enough, or the ensemble itself."""
    answers = answer_photos(run, data, ensemble)
    (student,) = together([train_student.submit(run, data, answers)])  # where trainings run, perhaps on another machine
    return keep_student(run, data, ensemble, student)


@step("answer photos")
def answer_photos(run: Run, data: DataFolder, ensemble: Served) -> Answers:
    """The answers of the ensemble to all train photos, whatever became of their labels, and to photos without one."""
    recipe = run.recipe
    networks = [folder / "network.pt" for folder in ensemble.networks]

    def work(out: Path) -> None:
        arguments = ["--data", data, "--recipe", run.recipe_file, "--ensemble", ensemble.weights / "ensemble.json"]
        arguments += ["--out", out, "--networks", *networks]
        run_child("models.export.teacher", arguments, say=say("answers"), on_gpu=True)

    names = [folder.name for folder in (*ensemble.networks, ensemble.weights)]
    views = [recipe.distil.crops, recipe.export.input_size, recipe.export.enlarge[0], recipe.export.keep]
    folder = run.cached("answers", data.name, names, recipe.distil.temperature, views, recipe.train.decode,
                        recipe.proof.file, files=ANSWERS, work=work)  # fmt: skip
    return Answers(folder)


@step("train student")
def train_student(run: Run, data: DataFolder, answers: Answers) -> Trained:
    """The student: network.pt, and scores.parquet of the validation and test photos."""
    recipe, settings = run.recipe, run.recipe.distil.settings(run.recipe.train)

    def work(out: Path) -> None:
        arguments = ["--data", data, "--recipe", run.recipe_file, "--answers", answers, "--out", out]
        workers = num_workers(settings.workers)
        run_child(
            "models.training.distil", arguments, say=say("student"), title="student", on_gpu=True, workers=workers
        )

    own = dataclasses.replace(recipe.distil, fall=0.0)  # decides later
    folder = run.cached(f"student-{own.backbone}", data.name, answers.name, own, own.member.start, settings.decisive,
                        recipe.augment, recipe.export.input_size, files=TRAINED, work=work)  # fmt: skip
    return Trained(folder)


@step("keep student")
def keep_student(run: Run, data: DataFolder, ensemble: Served, student: Trained) -> Served:
    """The student alone, if it loses at most `distil.fall` against the ensemble on the selection photos; else the ensemble."""
    manifest = with_selection_photos(read_manifest(data), run.recipe.proof.photos)
    measured, selected = SelectionPhotos(manifest), selection_photos(manifest)
    members = [read_scores(folder / "scores.parquet") for folder in ensemble.networks]
    joint = mean([each.select(selected[manifest.rows_of(each.id)]) for each in members], weights=ensemble.shares)
    before, after = measured.hits(joint)[selected], measured.recognised(student)[selected]
    proof = run.recipe.proof
    found = gain(before, after, manifest.target[selected], confidence=proof.confidence, fall=run.recipe.distil.fall)
    decision = {"step": "distil", "member": None, "method": run.recipe.distil.backbone, **found.to_dict()}
    log.info("distil: ensemble -> student, %s", in_words(decision))
    if not found.stays:
        return dataclasses.replace(ensemble, students=(student,), decision=decision)
    taught_by = (*ensemble.networks, ensemble.weights)
    return Served([student], alone(run), made_from=taught_by, students=(student,), decision=decision)


def alone(run: Run) -> Weights:
    """The weight of a network that is served alone: ensemble.json."""

    def work(out: Path) -> None:
        (out / "ensemble.json").write_text(json.dumps({"method": "alone", "weights": [1.0]}), encoding="utf-8")

    return Weights(run.cached("alone", files=["ensemble.json"], work=work))
