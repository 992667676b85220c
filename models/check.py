"""Can this recipe learn from these data? `python -m models.check --data DIR --recipe FILE.json`

Asked before anything is trained: a misspelt backbone of the second member must not show after an hour on the first.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from models.command import run
from models.config import Meta, Recipe, from_dict
from models.data.manifest import Manifest, read_manifest
from models.data.mixing import require_mixable
from models.data.trusted import trusted_rows
from models.emphasis import make_emphasis
from models.epochs import LEAST, num_steps
from models.errors import ConfigError, ManifestError
from models.job import split_rows
from models.losses import Loss, Samples, build_loss
from models.meta import read_schedule, start_of
from models.network import build_network


def check(recipe: Recipe, *, data: Path) -> None:
    """Builds what would be trained and counts what it would be trained on.

    Raises:
        ConfigError, WeightsMismatch: a backbone, its arguments or weights, a loss, weights of photos or the folds cannot be had.
        CheckpointMismatch: train.state is not of this loss.
        ManifestError: the data version has too few classes or photos.
    """
    manifest = read_manifest(data)
    check_photos(manifest)
    if recipe.clean.rounds:
        check_folds(manifest, num_folds=recipe.clean.folds)
    check_workers(recipe, manifest)
    make_emphasis(recipe.train, manifest, split_rows(manifest, fold=None, num_folds=0)[0])
    loss = build_loss(recipe.loss.name, num_classes=len(manifest.classes), **recipe.loss.params)
    require_mixable(recipe.augment, loss)
    check_state(recipe, loss, manifest)
    check_meta(recipe.meta, loss, manifest)
    for member in recipe.members:
        build_network(member, num_classes=len(manifest.classes))


def check_photos(manifest: Manifest) -> None:
    """At least two classes to learn, and a photo to judge by."""
    version = f"data version {manifest.data.name[:12]}"
    num_classes = int(np.count_nonzero(manifest.train_counts()))
    if num_classes < 2:
        raise ManifestError(
            f"{version}, labels.parquet: {num_classes} classes have a kept train photo, and a recogniser needs 2; "
            "ingest photos of more products, or go back with `cleanshelf data rollback`"
        )
    if not np.any(manifest.kept & (manifest.split == "test")):
        raise ManifestError(
            f"{version}, labels.parquet, column split: there is no test photo to judge a model by; ingest more photos "
            "(a class with five gives one), or mark some with split=test in a manifest"
        )


def check_folds(manifest: Manifest, *, num_folds: int) -> None:
    """Each fold has photos to judge, and leaves enough to train on."""
    usable = manifest.kept & (manifest.split == "train")
    for fold in range(num_folds):
        rows, held_out = split_rows(manifest, fold=fold, num_folds=num_folds)
        judged = np.count_nonzero(usable[held_out])
        if len(rows) < LEAST or not judged:
            raise ConfigError(
                f"clean.folds: of {int(usable.sum())} train photos fold {fold} of {num_folds} would judge {judged} after "
                f"training on {len(rows)}; set fewer folds, or clean.rounds=0, or ingest more photos"
            )


def check_state(recipe: Recipe, loss: Loss, manifest: Manifest) -> None:
    """The file of train.state is one that this loss can go on from."""
    if not recipe.train.state:
        return
    rows, _ = split_rows(manifest, fold=None, num_folds=recipe.clean.folds)
    loss.begin(Samples(id=manifest.id[rows], target=manifest.target[rows], classes=manifest.classes))
    if loss.memory is None:
        raise ConfigError(
            f"train.state: {recipe.train.state} is what a loss remembers of photos, and {recipe.loss.name!r} remembers nothing; "
            'leave it empty, or take a loss with state such as loss.name="marvel"'
        )
    loss.memory.carry(Path(recipe.train.state))


def check_workers(recipe: Recipe, manifest: Manifest) -> None:
    """Batches are large enough for the workers that share them, in the smallest training too."""
    folds = [None, *range(recipe.clean.folds if recipe.clean.rounds else 0)]
    for fold in folds:
        rows, _ = split_rows(manifest, fold=fold, num_folds=recipe.clean.folds)
        num_steps(recipe.train.epoch_length or len(rows), recipe.train, workers=max(recipe.train.workers, 1))


def check_meta(settings: Meta, loss: Loss, manifest: Manifest) -> None:
    """The loss has something to learn, from photos that leave others to train on; or a schedule to follow."""
    if settings.replay:
        read_schedule(Path(settings.replay), loss)
    if not settings.photos:
        return
    start_of(loss)
    trusted = trusted_rows(settings.photos, manifest)
    left = np.setdiff1d(np.flatnonzero(manifest.kept & (manifest.split == "train")), trusted)
    if len(left) < LEAST:
        raise ConfigError(
            f"meta.photos: {settings.photos} names all but {len(left)} of the photos to train on; keep {LEAST} of them"
        )


def main() -> None:
    """The command line of one check; silent when all is well."""
    parser = argparse.ArgumentParser(description="Check that a recipe can be trained on a materialised data version.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, required=True, help="a resolved recipe, as JSON")
    args = parser.parse_args()
    check(from_dict(json.loads(args.recipe.read_text(encoding="utf-8"))), data=args.data)


if __name__ == "__main__":
    run(main)
