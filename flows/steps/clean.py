"""Rounds of cleaning as a stage: what networks say of photos they never saw becomes decisions, and those a data version."""

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
from flows.orchestrator.server import emit
from flows.run.run import Run, code_hash
from flows.run.step import step, together
from flows.steps.learn import score_fold
from models.cleaning import Noise
from models.data.confusion import NAME as CONFUSION
from models.data.confusion import write_confusion
from models.data.manifest import CHECKED, Manifest, read_manifest, write_labels, write_version
from models.data.trusted import with_selection_photos
from models.decisions import FoldEmbeddings, confusion, decide, fold_embeddings, moves, out_of_sample, scored_by
from models.evaluation.scores import Scores, read_scores
from models.recipe.config import digest

log = logging.getLogger("cleanshelf")
OWN = ("labels.parquet", "VERSION.json", CONFUSION)  # files that a round writes; the others are linked


def rounds(run: Run, data: Path) -> Path:
    """The data version after all rounds of the recipe, or once one hardly changed anything; `data` where there are none."""
    for round in range(1, run.recipe.clean.rounds + 1):
        folds = together([score_fold.submit(run, data, fold) for fold in range(run.recipe.clean.folds)])
        before, data = data, clean(run, data, folds, round)
        if settled(before, data, stop_share=run.recipe.clean.stop_share):
            break
    return data


@step("clean, round {round}")
def clean(run: Run, data: Path, folds: list[Path], round: int) -> Path:
    """The data version in which all labels are judged by these folds, with every decision taken anew."""
    before = read_manifest(data)
    after, noise = judged(run, before, folds, round)
    done = moves(before, after)
    message = f"{done.flagged} labels disbelieved, {done.restored} believed again"
    log.info("clean, round %d: %s; %.1f%% of the labels moved", round, message, 100 * done.share)
    versions = DataVersions(run.workspace)
    folder = versions.new_folder()
    link_unchanged(data, folder, changed=OWN)
    write_labels(folder, after)
    if noise:
        write_confusion(noise, folder, classes=before.classes)
    config = digest(run.recipe.clean, [fold.name for fold in folds], round)
    write_version(folder, parent=data.name, step=f"clean-{round}", config=config, code=code_hash())
    if known := made_before(versions, folder):
        return known
    version = versions.commit(folder, step=f"clean-{round}", message=message)
    emit(selected("cleaned", versions.log()[0]))
    return versions.materialise(version)


def judged(run: Run, manifest: Manifest, folds: list[Path], round: int) -> tuple[Manifest, Noise | None]:
    """The manifest as the folds' scores decide it, and what is given for what, where the recipe asks for it (`clean.correct`).

    Photos whose labels somebody checked (`proof.photos`, `cleanshelf feedback`) stay as they are.
    """
    parts, settings = [read_scores(folder / "scores.parquet") for folder in folds], run.recipe.clean
    seen = with_selection_photos(manifest, run.recipe.proof.photos)
    scores = out_of_sample(parts, seen)
    checked = seen.decision == CHECKED
    if run.recipe.proof.photos:
        checked |= seen.split == "val"
    scores = scores.select(~np.isin(scores.id, seen.id[checked].astype(str)))
    embeddings = compared(folds, parts, scores) if settings.asks_embeddings else None
    names = scored_by([folder.name for folder in folds], parts, scores)
    after = decide(seen, scores, settings=settings, round=round, scored_by=names, fold_embeddings=embeddings)
    kept = np.where(np.isin(manifest.id, scores.id), after.kept, manifest.kept)
    noise = confusion(seen, scores, fold_embeddings=embeddings) if settings.correct and embeddings else None
    return dataclasses.replace(after, split=manifest.split, kept=kept), noise


def compared(folds: list[Path], parts: list[Scores], scores: Scores) -> FoldEmbeddings:
    """What photos are compared by: features of a backbone that all folds share, else embeddings of each fold's own network."""
    shared = all((folder / "features.npy").exists() for folder in folds)
    name = "features.npy" if shared else "embeddings.npy"
    return fold_embeddings([np.load(folder / name) for folder in folds], parts, scores, shared=shared)


def made_before(versions: DataVersions, folder: Path) -> Path | None:
    """The version of the same decisions that the selected one is, or was cleaned from; `folder` is gone then.

    So a retraining that is repeated adds nothing to the history, however many rounds it has.
    """
    for version in made_by_cleaning(versions.resolve("selected"), versions.log()):
        known = versions.workspace.versions / version
        if all(_bytes(known / name) == _bytes(folder / name) for name in OWN):
            shutil.rmtree(folder)
            return versions.materialise(version)
    return None


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def settled(before: Path, after: Path, *, stop_share: float) -> bool:
    """Whether a round changed so little that no further one is worth its folds."""
    share = moves(read_manifest(before), read_manifest(after)).share
    if found := share < stop_share or share == 0:
        log.info("clean: %.2f%% of the labels moved, so there is no further round", 100 * share)
    return found
