"""Memory and disk that a training certainly needs, so that what cannot fit is refused before anything starts.

Lower bounds: what is left out (activations of the backbone, decoded photos, libraries) only adds to them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from models.data import machine
from models.data.manifest import Manifest
from models.errors import ConfigError
from models.evaluation.scores import KEEP
from models.networks.network import EMBEDDING, Network, best_device, count_parameters
from models.recipe.config import Recipe, Train

FLOAT = 4  # bytes
COPIES = {"adamw": 4}  # of every parameter while it learns: itself, its gradient, and the moments of the optimiser
LEAST = 3
SCORE = FLOAT * (2 + 2 * KEEP) + 32  # bytes of a photo's scores in memory, its id included
GB = 1e9


def training_bytes(network: Network, settings: Train, *, num_classes: int) -> int:
    """Bytes for the parameters with all that an optimiser keeps of them, and for a batch of logits with their gradient."""
    copies = COPIES.get(settings.optimizer, LEAST)
    rows = settings.head_rows or settings.micro_batch or settings.batch_size
    learnt = network.head if settings.backbone_lr_scale == 0 else network
    fixed = count_parameters(network) - count_parameters(learnt)
    return FLOAT * (copies * count_parameters(learnt) + fixed + 2 * rows * num_classes)


def disk_bytes(recipe: Recipe, network: Network, manifest: Manifest, *, folds: int) -> int:
    """Bytes of the files that one member's trainings leave: networks, a checkpoint, scores, embeddings of the folds.

    folds: number of its trainings that only score, over all rounds.
    """
    trainings = 1 + (recipe.clean.rounds > 0) + (recipe.finetune.epochs > 0) + 1  # the last one is re-balanced
    networks = FLOAT * count_parameters(network) * (trainings + folds + LEAST)
    scored = folds / recipe.clean.folds  # each fold scores its part of the photos
    vectors = 2 * EMBEDDING if recipe.clean.asks_embeddings else 0
    return networks + int(scored * len(manifest) * (SCORE + vectors))


def require_memory(network: Network, settings: Train, *, num_classes: int, key: str) -> None:
    """Raises ConfigError if the machine lacks memory for the trainings that will share it.

    A GPU has its own memory, and a batch that it cannot hold is split there.
    """
    if best_device().type != "cpu":
        return
    each, number = training_bytes(network, settings, num_classes=num_classes), machine.sharing()
    free = machine.available_bytes() + FLOAT * count_parameters(network)  # this one is here already
    if each * number <= free:
        return
    ways = ["set CLEANSHELF_PARALLEL=1"] if number > 1 and each <= free else []
    ways += (
        ["set train.head_rows=32"] if not settings.head_rows and _is_mostly_logits(each, settings, num_classes) else []
    )
    ways += ['set train.optimizer="sgd"'] if settings.optimizer == "adamw" else []
    beside = f", and {number} trainings side by side {each * number / GB:.1f} GB" if number > 1 else ""
    raise ConfigError(
        f"{key}: a training of {count_parameters(network):,} parameters on {num_classes:,} classes needs at least "
        f"{each / GB:.1f} GB of memory{beside}; this machine has {free / GB:.1f} GB left; "
        f"{', '.join([*ways, 'free some, or use a larger machine'])}"
    )


def _is_mostly_logits(needed: int, settings: Train, num_classes: int) -> bool:
    return FLOAT * 4 * settings.batch_size * num_classes > needed


def require_disk(needed: int, folder: Path) -> None:
    """Raises ConfigError if the disk of this folder lacks room for what the trainings leave."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"members: their networks, scores and checkpoints take at least {needed / GB:.1f} GB, and the disk of {folder} has "
            f"{free / GB:.1f} GB left; free some (`cleanshelf data gc`), or train fewer members or folds"
        )
