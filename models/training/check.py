"""Can this recipe learn from these data? `python -m models.training.check --data DIR --recipe FILE.json`

Asked before anything is trained: a misspelt backbone of the second member must not show after an hour on the first.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from models.cleaning import RULES
from models.data.manifest import Manifest, read_manifest
from models.data.trusted import trusted_rows, with_selection_photos
from models.errors import ConfigError, ManifestError
from models.losses import Loss, Samples, build_loss
from models.networks.inputs import view_size
from models.networks.network import Network, build_network, set_size
from models.recipe.config import Meta, Recipe
from models.training.command import parser_for, read_recipe, run
from models.training.epochs import LEAST, num_steps
from models.training.job import require_mixable, split_rows
from models.training.meta import read_schedule, start_of
from models.training.sample_weights import make_sample_weights


def check(recipe: Recipe, *, data: Path) -> None:
    """Builds what would be trained and counts what it would be trained on.

    Raises:
        ConfigError, WeightsMismatch: a backbone, its arguments or weights, a loss, a rule, photos' weights or folds cannot be had.
        CheckpointMismatch: train.state is not of this loss.
        ManifestError: the data version has too few classes or photos.
    """
    manifest = with_selection_photos(read_manifest(data), recipe.proof.photos)
    check_photos(manifest)
    RULES.build(recipe.clean.rule, **recipe.clean.params)
    if recipe.clean.rounds:
        check_folds(manifest, num_folds=recipe.clean.folds)
    for member, each in enumerate(recipe.members):
        try:
            check_member(recipe, member, manifest)
        except ConfigError as error:
            table, _, _ = str(error).partition(".")
            if table in ("loss", "train") and getattr(each, table):
                raise ConfigError(f"members.{member}.{error}") from None
            raise


def check_member(recipe: Recipe, member: int, manifest: Manifest) -> None:
    """What one member would be trained with and on, at every size."""
    own, num_classes = recipe.of(member), len(manifest.classes)
    selection_photos = recipe.clean.rounds > 0 and member == recipe.clean.member
    check_workers(own, manifest, num_folds=recipe.clean.folds if selection_photos else 0)
    make_sample_weights(own.train, manifest, split_rows(manifest, fold=None, num_folds=0)[0], clean=own.clean)
    loss = build_loss(own.loss.name, num_classes=num_classes, **own.loss.params)
    require_mixable(own.augment, loss)
    check_state(own, loss, manifest)
    check_meta(own.meta, loss, manifest)
    network = build_network(own.members[0], num_classes=num_classes)
    check_sizes(own, network)


def check_sizes(own: Recipe, network: Network) -> None:
    """The network takes the sizes that it is shown in training, and the one at which it is trained on."""
    (member,) = own.members
    if own.train.start_size < 1:
        size = view_size(member.size, own.train.start_size)
        try:
            network.eval().features(torch.zeros(1, 3, size, size))
        except Exception as error:  # timm's models raise what they like
            raise ConfigError(
                f"train.start_size: {own.train.start_size} is {size} px, and {member.backbone} takes {member.size} alone "
                f"({type(error).__name__}); set 1"
            ) from None
    if own.finetune.epochs:
        set_size(network.backbone, own.finetune.resized(member))


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
    is_train = manifest.split == "train"
    for fold in range(num_folds):
        rows, held_out = split_rows(manifest, fold=fold, num_folds=num_folds)
        judged = np.count_nonzero(is_train[held_out])
        if len(rows) < LEAST or not judged:
            raise ConfigError(
                f"clean.folds: of {len(rows) + judged} train photos fold {fold} of {num_folds} would judge {judged} after "
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


def check_workers(recipe: Recipe, manifest: Manifest, *, num_folds: int) -> None:
    """Batches are large enough for the workers that share them, in the smallest training too."""
    for fold in (None, *range(num_folds)):
        rows, _ = split_rows(manifest, fold=fold, num_folds=num_folds)
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
    args = parser_for(
        "data recipe", description="Check that a recipe can be trained on a materialised data version."
    ).parse_args()
    check(read_recipe(args.recipe), data=args.data)


if __name__ == "__main__":
    run(main)
