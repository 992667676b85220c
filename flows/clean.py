"""One cleaning round: what networks say of photos they never saw becomes decisions, and the decisions a data version."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from flows.data_version import DataVersions, Entry
from flows.files import link
from flows.run import Run, code_hash
from flows.stage import stage
from models.cleaning import log_margin, worst
from models.config import Clean, digest
from models.data.manifest import Manifest, read_manifest, write_labels, write_version
from models.scores import Scores, concatenate, mean, read_scores

log = logging.getLogger("cleanshelf")


def uncleaned(version: str, history: Iterable[Entry]) -> str:
    """The version that cleaning started from, where `version` is what cleaning made of it; else `version` itself.

    Labels are judged anew from there: a retraining that is repeated, or goes on after a kill, then takes the same decisions
    instead of taking further ones from its own result.
    """
    parents = {entry.id: entry.parent for entry in history if entry.step.startswith("clean-")}
    while parent := parents.get(version):
        version = parent
    return version


@stage("clean, round {round}")
def clean(run: Run, data: Path, folds: list[Path], round: int) -> Path:
    """The data version in which suspect labels are decided away; the same folder where there is nothing to decide."""
    manifest = read_manifest(data)
    scores = out_of_sample([read_scores(folder / "scores.parquet") for folder in folds], manifest)
    decided = decide(manifest, scores, settings=run.recipe.clean, round=round)
    dropped = int((manifest.kept & ~decided.kept).sum())
    log.info("clean: %d of %d labels are not believed", dropped, len(scores))
    if dropped == 0:
        return data
    versions = DataVersions(run.workspace)
    folder = versions.stage()
    for path in sorted(data.rglob("*")):
        if path.is_file() and path.name not in ("labels.parquet", "VERSION.json", "READY"):
            link(path, folder / path.relative_to(data))
    write_labels(folder, decided)
    config = digest(run.recipe.clean, [folder.name for folder in folds], round)
    write_version(folder, parent=data.name, step=f"clean-{round}", config=config, code=code_hash())
    return versions.materialise(
        versions.commit(folder, step=f"clean-{round}", message=f"{dropped} labels decided away")
    )


def out_of_sample(folds: list[Scores], manifest: Manifest) -> Scores:
    """One row per kept training and validation photo, by networks that did not train on it.

    Each fold's scores hold its own part of the training photos and all validation photos: the former are taken as they are,
    the latter are the mean over the folds. A validation photo of a class without training photos cannot be judged.
    """
    validation = manifest.id[manifest.split == "val"].astype(str)
    of_fold = [fold.select(~np.isin(fold.id, validation)) for fold in folds]
    of_validation = mean(
        [fold.select(np.isin(fold.id, validation)) for fold in folds], num_classes=len(manifest.classes)
    )
    return concatenate([*of_fold, of_validation.select(of_validation.target >= 0)])


def decide(manifest: Manifest, scores: Scores, *, settings: Clean, round: int) -> Manifest:
    """The manifest with every judged photo's score, and the suspect ones dropped; nothing is removed."""
    margin = log_margin(scores.p_label, scores.best_other())
    row = np.searchsorted(manifest.id, scores.id)
    train = manifest.split[row] == "train"
    wrong = np.zeros(len(scores), np.bool_)
    wrong[train] = worst(scores.target[train], margin[train], threshold=settings.margin,
                         floor_share=settings.floor_share, floor_count=settings.floor_count)  # fmt: skip
    wrong[~train] = (
        margin[~train] < settings.margin
    )  # the floor guards what is learnt; a doubtful photo measures nothing
    kept, decision = manifest.kept.copy(), manifest.decision.copy()
    score, rounds = manifest.score.copy(), manifest.round.copy()
    score[row], rounds[row] = margin, round
    kept[row[wrong]] = False
    decision[row[wrong]] = "dropped"
    return dataclasses.replace(manifest, kept=kept, decision=decision, score=score, round=rounds)
