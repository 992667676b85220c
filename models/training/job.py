"""One training: which photos, which network, where to; and the name of its result."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.data.confusion import NAME
from models.data.manifest import Manifest
from models.data.samplers import folds
from models.errors import ConfigError
from models.losses import Loss
from models.recipe.config import Augment, Member, Recipe, Train, content, digest, training_inputs


@dataclass(frozen=True, kw_only=True)
class Job:
    """What `python -m models.training.train` was asked for."""

    data: Path  # a materialised data version
    recipe: Recipe
    member: int
    out: Path
    fold: int | None = None  # leave this fold of the training photos out, and score it
    start: Path | None = None  # the network.pt of a training that goes on as finetune says

    @cached_property
    def own(self) -> Recipe:
        """The recipe of the member alone."""
        return self.recipe.of(self.member)

    @property
    def network(self) -> Member:
        """What is trained, at its size."""
        (member,) = self.own.members
        return member if self.start is None else self.recipe.finetune.resized(member)

    @property
    def train(self) -> Train:
        """As the recipe says; what judges photos is trained for clean.epochs."""
        settings = self.own.train
        if self.start is not None:
            return self.recipe.finetune.settings(settings)
        return settings if self.fold is None else settings.light(self.recipe.clean.epochs)

    @property
    def epochs_before(self) -> int:
        """Of the training that goes on."""
        return 0 if self.start is None else self.own.train.epochs

    @property
    def state(self) -> str:
        """The samples.parquet from which the loss knows the photos already; "" for none."""
        if self.start is None:
            return self.train.state
        left = self.start.with_name("samples.parquet")
        return str(left) if left.exists() else ""

    @property
    def seed(self) -> int:
        return self.network.seed

    @property
    def key(self) -> str:
        """Names everything that the result depends on."""
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
    """Positions of the photos to train on and of those to score; nothing is ever in both.

    Validation photos that cleaning dropped are scored all the same: what a step gains on them shows how far the others flatter it.
    A fold also scores what cleaning dropped, so that its next round can take that back. Folds go by given labels: a photo stays
    in its own through all rounds.
    """
    rows = np.flatnonzero(manifest.kept & (manifest.split == "train"))
    if fold is None:
        return rows, np.flatnonzero((manifest.split == "val") | (manifest.split == "test") & manifest.kept)
    judged = manifest.kept | (manifest.decision == "dropped")
    train, validation = (np.flatnonzero(judged & (manifest.split == split)) for split in ("train", "val"))
    of_fold = train[folds(manifest.given_target[train], manifest.id[train], num_folds=num_folds) == fold]
    return np.setdiff1d(rows, of_fold), np.concatenate([of_fold, validation])


def require_mixable(augment: Augment, loss: Loss) -> None:
    """ConfigError where photos are to be mixed and the loss keeps state per photo: a mixed one says nothing of either."""
    if augment.mixes and loss.needs_index:
        raise ConfigError(
            f"augment.{'mixup' if augment.mixup else 'cutmix'}: {type(loss).__name__} judges each photo by the network's answer "
            "to it, and a mixed photo is two; set it to 0, or take a loss without state per photo"
        )
