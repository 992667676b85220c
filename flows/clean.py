"""One cleaning round: what networks say of photos they never saw becomes decisions, and the decisions a data version."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flows.data_version import DataVersions, Entry
from flows.files import link
from flows.run import Run, code_hash
from flows.stage import stage
from models.cleaning import HALF, TopK, label_quality, log_margin, worst
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
    parts, settings = [read_scores(folder / "scores.parquet") for folder in folds], run.recipe.clean
    scores = out_of_sample(parts, manifest)
    seen = (
        looks([np.load(folder / "embeddings.npy") for folder in folds], parts, scores)
        if settings.asks_embeddings
        else None
    )
    decided = decide(manifest, scores, settings=settings, round=round, looks=seen)
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


class Looks(NamedTuple):
    """embeddings (N, 512), and the fold (N,) whose network made them: those of different networks cannot be compared."""

    embeddings: NDArray[np.floating]
    fold: NDArray[np.int64]


def looks(embeddings: list[NDArray[np.floating]], folds: list[Scores], scores: Scores) -> Looks:
    """Of the photos of `scores`, by the fold that held them out; of validation photos, which all folds did, by the first."""
    found = Looks(np.empty((len(scores), embeddings[0].shape[1]), np.float32), np.zeros(len(scores), np.int64))
    for number in reversed(range(len(folds))):
        judged = np.isin(folds[number].id, scores.id)
        row = np.searchsorted(scores.id, folds[number].id[judged])
        found.embeddings[row], found.fold[row] = embeddings[number][judged], number
    return found


def decide(manifest: Manifest, scores: Scores, *, settings: Clean, round: int, looks: Looks | None = None) -> Manifest:
    """The manifest with every judged photo's score, and the suspect ones dropped; nothing is removed."""
    value, threshold = judge(scores, settings=settings, num_classes=len(manifest.classes), looks=looks)
    row = np.searchsorted(manifest.id, scores.id)
    train = manifest.split[row] == "train"
    wrong = np.zeros(len(scores), np.bool_)
    wrong[train] = worst(scores.target[train], value[train], threshold=threshold, floor_share=settings.floor_share,
                         floor_count=settings.floor_count, budget=settings.budget)  # fmt: skip
    wrong[~train] = value[~train] < threshold  # the floor guards what is learnt; a doubtful photo measures nothing
    kept, decision = manifest.kept.copy(), manifest.decision.copy()
    score, rounds = manifest.score.copy(), manifest.round.copy()
    score[row], rounds[row] = value, round
    kept[row[wrong]] = False
    decision[row[wrong]] = "dropped"
    return dataclasses.replace(manifest, kept=kept, decision=decision, score=score, round=rounds)


def judge(
    scores: Scores, *, settings: Clean, num_classes: int, looks: Looks | None
) -> tuple[NDArray[np.floating], float]:
    """(N,) what the recipe's rule says of each label, and the threshold below which it is wrong.

    The rule log_margin speaks in log margins, all others in qualities from 0 to 1.
    """
    if settings.rule == "log_margin":
        return log_margin(scores.p_label, scores.best_other()), settings.margin
    asked = {"count": settings.neighbours} if settings.rule in ("neighbours", "product", "posterior") else {}
    probs = TopK(scores.top, scores.probs, scores.p_label, num_classes)
    embeddings, fold = looks or (None, None)
    return label_quality(scores.target, probs, embeddings, rule=settings.rule, groups=fold, **asked), HALF
