"""Description of one training: its photos, network, output folder and checkpoint key."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models import distributed
from models.data.confusion import NAME
from models.data.manifest import Manifest
from models.data.samplers import folds
from models.errors import ConfigError
from models.losses import Loss
from models.recipe.config import Augment, Member, Recipe, Train, content, digest, training_inputs
from models.training.command import log_progress, read_recipe


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training, as requested from `python -m models.training.train` or `finetune`."""

    data: Path  # folder of a materialised data version
    recipe: Recipe
    member: int
    out: Path
    fold: int | None = None  # hold out this fold of the training photos, and score it
    start: Path | None = None  # network.pt to fine-tune
    features: Path | None = None  # folder of the features that trainings of a frozen backbone share

    @cached_property
    def own(self) -> Recipe:
        """Recipe of this member only."""
        return self.recipe.of(self.member)

    @property
    def network(self) -> Member:
        """Member to train, at the size of this training."""
        (member,) = self.own.members
        return member if self.start is None else self.recipe.finetune.resized(member)

    @property
    def train(self) -> Train:
        """Training settings of the recipe; networks that score a fold are trained for clean.epochs."""
        settings = self.own.train
        if self.start is not None:
            return self.recipe.finetune.settings(settings)
        return settings if self.fold is None else settings.light(self.recipe.clean.epochs)

    @property
    def epochs_before(self) -> int:
        """Epochs of the training that is fine-tuned; 0 if there is none."""
        return 0 if self.start is None else self.own.train.epochs

    @property
    def state(self) -> str:
        """Path of the samples.parquet with the state per photo from which the loss starts; "" for none."""
        if self.start is None:
            return self.train.state
        samples = self.start.with_name("samples.parquet")
        return str(samples) if samples.exists() else ""

    @property
    def seed(self) -> int:
        """Seed of the member."""
        return self.network.seed

    @property
    def key(self) -> str:
        """Digest of everything that the result depends on."""
        labels = hashlib.sha256((self.data / "labels.parquet").read_bytes()).hexdigest()
        recipe = self.own
        return digest(
            *training_inputs(recipe, network=self.network, train=self.train),
            content(str(self.data / NAME)) if recipe.clean.correct else "",
            None if self.start is None else [recipe.finetune.learn, content(str(self.start))],
            None if self.fold is None else [self.fold, recipe.clean.folds],
            labels,
        )


def split_rows(manifest: Manifest, *, fold: int | None, num_folds: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the photos to train on and of those to score; the two never overlap.

    Validation photos that cleaning dropped are scored too: gains on the kept ones alone would be optimistic. A fold
    also scores dropped train photos, so that the next round of cleaning can restore them. Folds are stratified by given
    label, so that a photo stays in its fold through all rounds.
    """
    rows = np.flatnonzero(manifest.kept & (manifest.split == "train"))
    if fold is None:
        return rows, np.flatnonzero((manifest.split == "val") | (manifest.split == "test") & manifest.kept)
    scored = manifest.kept | (manifest.decision == "dropped")
    train, validation = (np.flatnonzero(scored & (manifest.split == split)) for split in ("train", "val"))
    held_out = train[folds(manifest.given_target[train], manifest.id[train], num_folds=num_folds) == fold]
    return np.setdiff1d(rows, held_out), np.concatenate([held_out, validation])


def require_mixable(augment: Augment, loss: Loss) -> None:
    """Raises ConfigError if photos are mixed and the loss keeps state per photo, which a mixed photo cannot update."""
    if augment.mixes and loss.needs_index:
        raise ConfigError(
            f"augment.{'mixup' if augment.mixup else 'cutmix'}: {type(loss).__name__} keeps state per photo, and a mixed photo "
            "is two photos; set it to 0, or choose a loss without state per photo"
        )


def run_job(
    args: argparse.Namespace, work: Callable[[Job], None], *, fold: int | None = None, start: Path | None = None
) -> None:
    """Calls `work` in every worker with the job of `--data`, `--recipe`, `--member` and `--out`, whose folder it creates."""
    args.out.mkdir(parents=True, exist_ok=True)
    recipe = read_recipe(args.recipe)
    with distributed.workers():
        if distributed.rank() == 0:
            log_progress()
        work(Job(data=args.data, recipe=recipe, member=args.member, out=args.out, fold=fold, start=start,
                 features=args.features))  # fmt: skip
