"""Rounds of cleaning: out-of-sample scores become decisions on labels, and these a data version."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path

import numpy as np

from flows.data.derive import link_unchanged
from flows.data.history import made_by_cleaning
from flows.data.versions import DataVersions
from flows.orchestrator.events import selected
from flows.orchestrator.reports import emit
from flows.run.run import Run, code_hash
from flows.run.step import step, together
from flows.steps.learn import score_fold
from flows.workspace.results import DataFolder, Fold
from models.cleaning import Noise
from models.data.confusion import NAME as CONFUSION
from models.data.confusion import write_confusion
from models.data.manifest import CHECKED, Manifest, read_manifest, write_labels, write_version
from models.data.trusted import with_selection_photos
from models.decisions import (
    FoldEmbeddings,
    changed_labels,
    confusion,
    decide,
    fold_embeddings,
    out_of_sample,
    scored_by,
)
from models.evaluation.scores import Scores, read_scores
from models.recipe.config import digest

log = logging.getLogger("cleanshelf")
OWN = ("labels.parquet", "VERSION.json", CONFUSION)  # files that a round writes; all others are linked


def clean_labels(run: Run, data: DataFolder) -> DataFolder:
    """The data version after all rounds of the recipe, or after the first that changes hardly anything.

    `data` itself if the recipe has no rounds.
    """
    for round in range(1, run.recipe.clean.rounds + 1):
        folds = together([score_fold.submit(run, data, fold) for fold in range(run.recipe.clean.folds)])
        before, data = data, clean(run, data, folds, round)
        if settled(before, data, stop_share=run.recipe.clean.stop_share):
            break
    return data


@step("clean, round {round}")
def clean(run: Run, data: DataFolder, folds: list[Fold], round: int) -> DataFolder:
    """The data version in which all labels are scored by these folds, with every decision made afresh."""
    before = read_manifest(data)
    after, noise = decided(run, before, folds, round)
    change = changed_labels(before, after)
    message = f"{change.flagged} labels flagged, {change.restored} restored"
    log.info("clean, round %d: %s; %.1f%% of the labels changed", round, message, 100 * change.share)
    versions = DataVersions(run.workspace)
    folder = versions.new_folder()
    link_unchanged(data, folder, changed=OWN)
    write_labels(folder, after)
    if noise:
        write_confusion(noise, folder, classes=before.classes)
    config = digest(run.recipe.clean, [fold.name for fold in folds], round)
    write_version(folder, parent=data.name, step=f"clean-{round}", config=config, code=code_hash())
    if earlier := same_version(versions, folder):
        return earlier
    version = versions.commit(folder, step=f"clean-{round}", message=message)
    emit(selected("cleaned", versions.log()[0]))
    return DataFolder(versions.materialise(version))


def decided(run: Run, manifest: Manifest, folds: list[Fold], round: int) -> tuple[Manifest, Noise | None]:
    """The manifest with the decisions that the folds' scores lead to, and the label noise if the recipe asks for it.

    Labels that a person checked (`proof.photos`, `cleanshelf feedback`) stay as they are. `clean.correct` asks for the noise.
    """
    parts, settings = [read_scores(folder / "scores.parquet") for folder in folds], run.recipe.clean
    seen = with_selection_photos(manifest, run.recipe.proof.photos)
    scores = out_of_sample(parts, seen)
    checked = seen.decision == CHECKED
    if run.recipe.proof.photos:
        checked |= seen.split == "val"
    scores = scores.select(~checked[seen.rows_of(scores.id)])
    embeddings = embeddings_of(folds, parts, scores) if settings.asks_embeddings else None
    names = scored_by([folder.name for folder in folds], parts, scores)
    after = decide(seen, scores, settings=settings, round=round, scored_by=names, fold_embeddings=embeddings)
    scored = manifest.rows_of(scores.id)
    kept = manifest.kept.copy()
    kept[scored] = after.kept[scored]
    noise = confusion(seen, scores, fold_embeddings=embeddings) if settings.correct and embeddings else None
    return dataclasses.replace(after, split=manifest.split, kept=kept), noise


def embeddings_of(folds: list[Fold], parts: list[Scores], scores: Scores) -> FoldEmbeddings:
    """The embeddings to compare photos by: features of the backbone that all folds share, or of each fold's own network."""
    shared = all((folder / "features.npy").exists() for folder in folds)
    name = "features.npy" if shared else "embeddings.npy"
    return fold_embeddings([np.load(folder / name) for folder in folds], parts, scores, shared=shared)


def same_version(versions: DataVersions, folder: Path) -> DataFolder | None:
    """An earlier version with the same decisions, from which the selected one was cleaned or which is selected.

    Removes `folder` if there is one. So a repeated retraining adds nothing to the history, however many rounds it has.
    """
    for version in made_by_cleaning(versions.resolve("selected"), versions.log()):
        earlier = versions.workspace.versions / version
        if all(_bytes(earlier / name) == _bytes(folder / name) for name in OWN):
            shutil.rmtree(folder)
            return DataFolder(versions.materialise(version))
    return None


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def settled(before: DataFolder, after: DataFolder, *, stop_share: float) -> bool:
    """True if a round changed so little that another one is not worth its folds."""
    share = changed_labels(read_manifest(before), read_manifest(after)).share
    if is_settled := share < stop_share or share == 0:
        log.info("clean: %.2f%% of the labels changed, so this was the last round", 100 * share)
    return is_settled
