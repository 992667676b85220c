"""Check a recipe and a data version before training: `python -m models.training.check --data DIR --recipe FILE.json`.

Runs before anything is trained, so that a misspelt backbone of the second member does not surface an hour into training
the first.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from models.cleaning import RULES
from models.data.jpegs import require_nvjpeg
from models.data.manifest import Manifest, read_manifest
from models.data.name_vectors import read_name_vectors
from models.data.trusted import trusted_rows, with_selection_photos
from models.errors import ConfigError, ManifestError, WeightsMismatch
from models.losses import Loss, Samples, build_loss
from models.networks.inputs import view_size
from models.networks.network import Network, build_network, feature_width, set_size
from models.recipe.config import Finetune, Member, Meta, Recipe
from models.recipe.tables import numbered
from models.training.answers import student_rows
from models.training.command import parser_for, read_recipe, run
from models.training.epochs import num_steps
from models.training.job import require_mixable, split_rows
from models.training.meta import read_schedule, start_of
from models.training.optimise import make_optimizer
from models.training.room import disk_bytes, require_disk, require_memory
from models.training.sample_weights import make_sample_weights
from models.training.step import MIN_PHOTOS


def check(recipe: Recipe, *, data: Path, present: int | None = None) -> None:
    """Builds every network and loss that would be trained, and counts the photos.

    present: bytes on the disk that earlier trainings left and that may be found again; memory and disk are checked if it is
        given, which means that this machine will train.

    Raises:
        ConfigError, WeightsMismatch: a backbone, its arguments or weights, a loss, a cleaning rule, vectors of names, sample
            weights or folds are not available; or this machine cannot hold what they need.
        CheckpointMismatch: train.state belongs to another loss.
        ManifestError: the data version has too few classes or photos.
    """
    manifest = with_selection_photos(read_manifest(data), recipe.proof.photos)
    check_photos(manifest)
    trained = (recipe.train, *(recipe.of(member).train for member in range(len(recipe.members))))
    if present is not None and any(settings.decode == "device" for settings in trained):
        require_nvjpeg()
    RULES.build(recipe.clean.rule, **recipe.clean.params)
    if recipe.clean.rounds:
        check_folds(manifest, num_folds=recipe.clean.folds)
        check_names(recipe, manifest)
    needed = 0
    for member, each in enumerate(recipe.members):
        try:
            needed += check_member(recipe, member, manifest, is_here=present is not None)
        except (ConfigError, WeightsMismatch) as error:
            table, _, _ = str(error).partition(".")
            if table in ("loss", "train") and getattr(each, table):
                raise ConfigError(f"members.{member}.{error}") from None
            raise type(error)(numbered(str(error), Member, "members", member)) from None
    if present is not None:
        require_disk(needed - present, data)
    if recipe.distil.backbone:
        check_student(recipe, manifest)


def check_member(recipe: Recipe, member: int, manifest: Manifest, *, is_here: bool = False) -> int:
    """Checks the network, loss, sample weights and sizes of one member; returns the bytes that its trainings will leave."""
    own, num_classes = recipe.of(member), len(manifest.classes)
    scores_folds = recipe.clean.rounds > 0 and member == recipe.clean.member
    check_workers(own, manifest, num_folds=recipe.clean.folds if scores_folds else 0)
    make_sample_weights(own.train, manifest, split_rows(manifest, fold=None, num_folds=0)[0], clean=own.clean)
    loss = build_loss(own.loss.name, num_classes=num_classes, **own.loss.params)
    require_mixable(own.augment, loss)
    check_state(own, loss, manifest)
    check_meta(own.meta, loss, manifest)
    check_frozen(own, member)
    network = build_network(own.members[0], num_classes=num_classes)
    make_optimizer(network, loss, own.train)
    check_sizes(own, network)
    if is_here:
        require_memory(network, own.train, num_classes=num_classes, key=f"members.{member}")
    return disk_bytes(own, network, manifest, folds=recipe.clean.folds * recipe.clean.rounds * scores_folds)


def check_student(recipe: Recipe, manifest: Manifest) -> None:
    """Checks the network, the views and the batches of the student."""
    settings, student = recipe.distil.settings(recipe.train), recipe.distil.member
    try:
        num_steps(settings.epoch_length or len(student_rows(manifest)), settings, workers=max(settings.workers, 1))
        network = build_network(student, num_classes=len(manifest.classes))
        check_sizes(dataclasses.replace(recipe, members=(student,), train=settings, finetune=Finetune()), network)
    except (ConfigError, WeightsMismatch) as error:
        message = str(error).replace("members.", "distil.").replace("train.batch_size", "distil.batch_size")
        raise type(error)(message) from None


def check_frozen(own: Recipe, member: int) -> None:
    """Raises ConfigError if the backbone keeps random weights: a head on top of it would learn next to nothing."""
    if own.train.backbone_lr_scale == 0 and not own.members[0].weights:
        raise ConfigError(
            f"members.{member}.weights: none are given, but train.backbone_lr_scale=0 freezes the backbone, which would keep "
            f"random weights; give timm's with --weights pretrained or a file with --weights FILE (all members), or --set "
            f"members.{member}.weights=..., or train the backbone too with train.backbone_lr_scale=1"
        )


def check_sizes(own: Recipe, network: Network) -> None:
    """Raises ConfigError unless the network accepts its first training size and its fine-tuning size."""
    (member,) = own.members
    if own.train.start_size < 1:
        size = view_size(member.size, own.train.start_size)
        try:
            network.eval().features(torch.zeros(1, 3, size, size))
        except Exception as error:  # timm's models raise all kinds of exceptions
            raise ConfigError(
                f"train.start_size: {own.train.start_size} gives {size} px, but {member.backbone} takes only {member.size} px "
                f"({type(error).__name__}); set it to 1"
            ) from None
    if own.finetune.epochs:
        set_size(network.backbone, own.finetune.resized(member))


def check_photos(manifest: Manifest) -> None:
    """Raises ManifestError unless there are at least two classes to learn and one test photo."""
    version = f"data version {manifest.data.name[:12]}"
    num_classes = int(np.count_nonzero(manifest.train_counts()))
    if num_classes < 2:
        raise ManifestError(
            f"{version}, labels.parquet: {num_classes} classes have a kept train photo, but training needs 2; "
            "ingest photos of more products, or go back with `cleanshelf data rollback`"
        )
    if not np.any(manifest.kept & (manifest.split == "test")):
        raise ManifestError(
            f"{version}, labels.parquet, column split: there is no test photo to evaluate a model on; ingest more photos "
            "(a class with five photos provides one), or mark some with split=test in a manifest"
        )


def check_folds(manifest: Manifest, *, num_folds: int) -> None:
    """Raises ConfigError unless each fold has photos to score and leaves enough to train on."""
    is_train = manifest.split == "train"
    for fold in range(num_folds):
        rows, held_out = split_rows(manifest, fold=fold, num_folds=num_folds)
        num_scored = np.count_nonzero(is_train[held_out])
        if len(rows) < MIN_PHOTOS or not num_scored:
            raise ConfigError(
                f"clean.folds: fold {fold} of {num_folds} would score {num_scored} of {len(rows) + num_scored} train photos "
                f"after training on {len(rows)}; set fewer folds, set clean.rounds=0, or ingest more photos"
            )


def check_names(recipe: Recipe, manifest: Manifest) -> None:
    """Reads the vectors of names of every member that has some, as cleaning does hours later.

    Raises:
        ConfigError: a file cannot be used, or two files are of one backbone.
    """
    used = recipe.name_vectors
    for number, member in enumerate(recipe.members):
        if not member.name_vectors:
            continue
        key = f"members.{number}.name_vectors"
        if member.name_vectors not in used:
            raise ConfigError(
                f"{key}: {member.name_vectors}, but an earlier member with the same backbone, weights and size names another file; "
                "leave one of them out"
            )
        read_name_vectors(Path(member.name_vectors), manifest.classes, key=key, width=feature_width(member))


def check_state(recipe: Recipe, loss: Loss, manifest: Manifest) -> None:
    """Raises ConfigError or CheckpointMismatch unless the loss can continue from the file in train.state."""
    if not recipe.train.state:
        return
    rows, _ = split_rows(manifest, fold=None, num_folds=recipe.clean.folds)
    loss.begin(Samples(id=manifest.id[rows], target=manifest.target[rows], classes=manifest.classes))
    if loss.memory is None:
        raise ConfigError(
            f"train.state: {recipe.train.state} holds the state that a loss keeps per photo, but {recipe.loss.name!r} keeps "
            'none; leave train.state empty, or choose a loss with state such as loss.name="marvel"'
        )
    loss.memory.carry(Path(recipe.train.state))


def check_workers(recipe: Recipe, manifest: Manifest, *, num_folds: int) -> None:
    """Raises ConfigError unless batches are large enough for the workers that share them, in every fold too."""
    for fold in (None, *range(num_folds)):
        rows, _ = split_rows(manifest, fold=fold, num_folds=num_folds)
        num_steps(recipe.train.epoch_length or len(rows), recipe.train, workers=max(recipe.train.workers, 1))


def check_meta(settings: Meta, loss: Loss, manifest: Manifest) -> None:
    """Raises ConfigError unless [meta] has trusted photos that leave others to train on, or a valid schedule, or neither."""
    if settings.replay:
        read_schedule(Path(settings.replay), loss)
    if not settings.photos:
        return
    start_of(loss)
    trusted = trusted_rows(settings.photos, manifest)
    left = np.setdiff1d(np.flatnonzero(manifest.kept & (manifest.split == "train")), trusted)
    if len(left) < MIN_PHOTOS:
        raise ConfigError(
            f"meta.photos: {settings.photos} leaves {len(left)} photos to train on, but training needs {MIN_PHOTOS}; "
            "name fewer"
        )


def main() -> None:
    """Command line of the check; silent if the recipe can be trained."""
    parser = parser_for("data recipe", description="Check that a recipe can be trained on a data version.")
    parser.add_argument("--present", type=int, help="bytes of earlier results; given if this machine will train")
    args = parser.parse_args()
    check(read_recipe(args.recipe), data=args.data, present=args.present)


if __name__ == "__main__":
    run(main)
