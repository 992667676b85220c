"""Rounds of cleaning: out-of-sample scores become decisions on labels, and these a data version.

The versions are known and not selected: they belong to the run until its model is published (`select_cleaned`).
"""

from __future__ import annotations

import dataclasses
import logging
from itertools import count, takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flows.data.derive import link_unchanged
from flows.data.history import CLEANED, DELIVERED, is_cleaned, overtaken, uncleaned
from flows.data.versions import DataVersions
from flows.errors import LocalEdits, WorkspaceBusy
from flows.orchestrator.events import selected
from flows.orchestrator.reports import emit
from flows.run.run import Run, code_hash, inputs_of
from flows.run.step import step, together
from flows.steps.learn import score_fold
from flows.workspace import DATA_LOCK, Workspace
from flows.workspace.results import DataFolder, Fold
from models.cleaning import Noise
from models.data.confusion import NAME as CONFUSION
from models.data.confusion import write_confusion
from models.data.manifest import CHECKED, FLAGGED, Manifest, read_manifest, write_labels, write_version
from models.data.name_vectors import read_name_vectors
from models.data.trusted import with_selection_photos
from models.decisions import (
    FoldEmbeddings,
    as_delivered,
    assess,
    changed_labels,
    confusion,
    decide,
    fold_embeddings,
    out_of_sample,
    scored_by,
)
from models.evaluation.scores import Scores, read_scores
from models.recipe.config import Recipe, content, digest

log = logging.getLogger("cleanshelf")
PATIENCE_S = 60.0  # how long to wait for a command that changes data versions
OWN = ("labels.parquet", "VERSION.json", CONFUSION)  # files that a round writes; all others are linked


@step("labels as delivered")
def deliver(run: Run, data: DataFolder) -> DataFolder:
    """The data version with all labels as delivered, or as people corrected them; `data` itself if no cleaning changed any.

    A delivery or feedback on top of a cleaned version leaves the decisions of that cleaning in place. They are taken back
    in a version of its own, with the same photos.
    """
    versions = DataVersions(run.workspace)
    data = DataFolder(versions.materialise(uncleaned(data.name, versions.known_entries())))
    before = read_manifest(data)
    after = as_delivered(before)
    if not (data / CONFUSION).exists() and same_labels(before, after):
        return data
    restored = int(before.has_decision(FLAGGED).sum())
    return derive(run, data, after, step=DELIVERED, message=f"{restored} decisions of cleaning taken back")


def clean_labels(run: Run, data: DataFolder) -> DataFolder:
    """The data version after all rounds of the recipe, or after the first that changes hardly anything."""
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
    names = [content(file) for file in run.recipe.name_vectors]
    config = digest(run.recipe.clean, [fold.name for fold in folds], round, *names)
    return derive(run, data, after, step=f"{CLEANED}{round}", message=message, config=config, noise=noise)


def derive(
    run: Run,
    data: DataFolder,
    labels: Manifest,
    *,
    step: str,
    message: str,
    config: str = "",
    noise: Noise | None = None,
) -> DataFolder:
    """The data version with the photos of `data` and these labels. The same labels again are the same version."""
    folder = run.new_folder()
    link_unchanged(data, folder, changed=OWN)
    write_labels(folder, labels)
    if noise:
        write_confusion(noise, folder, classes=labels.classes)
    write_version(folder, parent=data.name, step=step, config=config, code=code_hash())
    versions = DataVersions(run.workspace)
    return DataFolder(versions.materialise(versions.keep(folder, step=step, message=message, run=run.id)))


@step("select data version")
def select_cleaned(workspace: Workspace, version: str, *, run: str) -> str:
    """Selects the data version of a run whose result stands, unless others changed the selection since the run started.

    Does nothing for a version that is selected already, or that cleaning did not make.

    Returns:
        The reason why the selection stays as it is; "" if there is none.
    """
    versions = DataVersions(workspace)
    versions.confirm()
    made = next((each for each in versions.known_entries() if each.id == version and is_cleaned(each)), None)
    if made is None or versions.selected() == version:
        return ""
    try:
        with workspace.lock(f"selection of {version[:12]}", name=DATA_LOCK, wait_s=PATIENCE_S):
            reason = since_its_start(versions, run)
            if not reason:
                emit(selected("cleaned", versions.select_as(version, step=made.step, message=made.message)))
    except (WorkspaceBusy, LocalEdits) as error:
        reason = f"{error}; the same command again selects it"
    if reason:
        reason = f"data version {version[:12]} is known and not selected: {reason}"
        log.warning("%s", reason)
    return reason


def since_its_start(versions: DataVersions, run: str) -> str:
    """The delivery, feedback, rollback or purge since a run started, in words; "" if there was none."""
    tip = inputs_of(versions.workspace, run).get("history")
    if tip is None:
        return f"runs/{run}/inputs.json does not say which version the run started from"
    newer = overtaken(versions.ledger, since=tip)
    return newer and f"{newer} came in after the run started, and the next run starts from it"


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
    if embeddings:
        embeddings = embeddings._replace(name_vectors=name_vectors(run.recipe, seen.classes))
    names = scored_by([folder.name for folder in folds], parts, scores)
    assessment = assess(seen, scores, settings=settings, fold_embeddings=embeddings)
    after = decide(seen, scores, assessment, settings=settings, round=round, scored_by=names)
    scored = manifest.rows_of(scores.id)
    kept = manifest.kept.copy()
    kept[scored] = after.kept[scored]
    noise = confusion(seen, scores, assessment) if settings.correct else None
    return dataclasses.replace(after, split=manifest.split, kept=kept), noise


def embeddings_of(folds: list[Fold], parts: list[Scores], scores: Scores) -> FoldEmbeddings:
    """The embeddings to compare photos by: features of the backbones that all folds share, or of each fold's own network."""

    def read(name: str, *, shared: bool = True) -> FoldEmbeddings:
        vectors = [np.load(folder / name, mmap_mode="r") for folder in folds]
        return fold_embeddings(vectors, parts, scores, shared=shared)

    def everywhere(name: str) -> bool:
        return all((folder / name).exists() for folder in folds)

    if not everywhere("features.npy"):
        return read("embeddings.npy", shared=False)
    further = takewhile(everywhere, (f"features-{number}.npy" for number in count(1)))
    return read("features.npy")._replace(more=tuple(read(name).embeddings for name in further))


def name_vectors(recipe: Recipe, classes: list[str]) -> tuple[NDArray[np.float32] | None, ...]:
    """Vectors of the names of the classes for each encoder of the recipe; () if it has none."""
    found: list[NDArray[np.float32] | None] = []
    for file in recipe.name_vectors:
        vectors = read_name_vectors(Path(file), classes, key="members.name_vectors") if file else None
        if vectors is not None and (missing := ~vectors.any(axis=1)).any():
            log.info("%s: %d of %d classes have no vector, first %s; names say nothing about these", file, missing.sum(),
                     len(classes), classes[int(missing.argmax())])  # fmt: skip
        found.append(vectors)
    return tuple(found)


def same_labels(one: Manifest, other: Manifest) -> bool:
    """True if two manifests of the same photos agree in every column that cleaning changes."""
    names = ("label", "kept", "decision", "round", "scored_by")
    same = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)
    return same and np.array_equal(one.score, other.score, equal_nan=True)


def settled(before: DataFolder, after: DataFolder, *, stop_share: float) -> bool:
    """True if a round changed so little that another one is not worth its folds."""
    share = changed_labels(read_manifest(before), read_manifest(after)).share
    if is_settled := share < stop_share or share == 0:
        log.info("clean: %.2f%% of the labels changed, so this was the last round", 100 * share)
    return is_settled
