"""One training: which photos, which network, where to; and the name of its result."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.config import Recipe, Train, content, digest
from models.data.confusion import NAME
from models.data.manifest import Manifest
from models.data.samplers import folds


@dataclass(frozen=True, kw_only=True)
class Job:
    """What `python -m models.train` was asked for."""

    data: Path  # a materialised data version
    recipe: Recipe
    member: int
    out: Path
    fold: int | None = None  # leave this fold of the training photos out, and score it

    @property
    def train(self) -> Train:
        """As the recipe says; what judges photos is trained for clean.epochs, on all photos to the end."""
        if self.fold is None:
            return self.recipe.train
        return dataclasses.replace(self.recipe.train, epochs=self.recipe.clean.epochs, balanced_epochs=0, best_epochs=0)

    @property
    def seed(self) -> int:
        return self.recipe.members[self.member].seed

    @property
    def key(self) -> str:
        """Names everything that the result depends on."""
        labels = hashlib.sha256((self.data / "labels.parquet").read_bytes()).hexdigest()
        recipe = self.recipe
        parts = (
            recipe.members[self.member],
            recipe.loss,
            recipe.meta,
            recipe.meta.file,
            self.train.decisive,
            content(self.train.photo_weights),
            content(str(self.data / NAME)) if recipe.clean.correct else "",
            recipe.augment,
            recipe.export.input_size,
        )
        return digest(*parts, None if self.fold is None else [self.fold, recipe.clean.folds], labels)


def split_rows(manifest: Manifest, *, fold: int | None, num_folds: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the photos to train on and of those to score; nothing is ever in both."""
    usable = manifest.kept & (manifest.split == "train")
    rows = np.flatnonzero(usable)
    if fold is None:
        return rows, np.flatnonzero(np.isin(manifest.split, ["val", "test"]) & manifest.kept)
    of_fold = folds(manifest.target[rows], manifest.id[rows], num_folds=num_folds) == fold
    validation = np.flatnonzero(manifest.kept & (manifest.split == "val"))
    return rows[~of_fold], np.concatenate([rows[of_fold], validation])
