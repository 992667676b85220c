"""Photos with trusted labels: selection photos (`[proof]`), and photos that adjust a loss's hyperparameters (`[meta]`).

No member is trained on them, and no student on selection photos.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.data.manifest import OUTSIDE, UNLABELLED, Manifest
from models.data.positions import positions
from models.data.records import SUFFIXES, check_file, read_rows, short, text_of
from models.data.samplers import draw_epoch
from models.errors import BadTable, ConfigError

log = logging.getLogger(__name__)

VALIDATION = "val"  # value of `meta.photos` that means the validation photos instead of a file
MIN_PHOTOS = 2  # photos of a batch, because of batch norm


def selection_photos(manifest: Manifest) -> NDArray[np.bool_]:
    """(N,) True for the selection photos: validation photos of a trained class, except those that ingestion excluded.

    Decisions of cleaning are ignored, because the photos that it keeps are those that its own networks recognise: they
    would favour steps that resemble these networks, and whole classes would be missing. Wrong labels shrink every gain
    equally (docs/tasks/kept-steps.md has figures).
    """
    return (manifest.split == VALIDATION) & (manifest.target >= 0) & ~manifest.has_decision(OUTSIDE)


def with_selection_photos(manifest: Manifest, photos: str) -> Manifest:
    """The manifest with the photos that `proof.photos` names as its validation photos; unchanged for "".

    They are kept regardless of the decisions of cleaning; the former validation photos are moved to the train split.

    Raises:
        ConfigError: the file cannot be read, names unknown, test or unlabelled photos, or leaves a class without train photos.
    """
    if not photos:
        return manifest
    named = _named(Path(photos), manifest, key="proof.photos")
    split = np.where((manifest.split == VALIDATION) & (manifest.target >= 0), "train", manifest.split).astype(object)
    split[named] = VALIDATION
    changed = dataclasses.replace(manifest, split=split, kept=manifest.kept | named)
    lost = sorted({*manifest.classes} - {*changed.classes})
    if lost:
        raise ConfigError(
            f"proof.photos: {photos}: names every photo of {len(lost)} classes, first {lost[0]!r}, and leaves none to train on; "
            "remove some"
        )
    return changed


def trusted_rows(photos: str, manifest: Manifest) -> NDArray[np.int64]:
    """Sorted positions in the manifest of the photos that `meta.photos` names; none for "".

    Dropped photos and photos of a class without train photos are left out.

    Raises:
        ConfigError: the file cannot be read, names unknown, test or unlabelled photos, or fewer than two photos can be used.
    """
    if not photos:
        return np.empty(0, np.int64)
    named = manifest.split == VALIDATION if photos == VALIDATION else _named(Path(photos), manifest, key="meta.photos")
    rows = np.flatnonzero(named & manifest.kept & (manifest.target >= 0))
    if len(rows) < MIN_PHOTOS:
        raise ConfigError(
            f"meta.photos: {photos} leaves {len(rows)} photos to learn from ({int(named.sum())} with dropped photos and "
            f"unknown classes); give at least {MIN_PHOTOS}, better one of each class"
        )
    missing = len(manifest.classes) - len(np.unique(manifest.target[rows]))
    if missing:
        log.warning("meta.photos: %d of %d classes have no trusted photo; the loss is adjusted to the other classes only",
                    missing, len(manifest.classes))  # fmt: skip
    return rows


def _named(path: Path, manifest: Manifest, *, key: str) -> NDArray[np.bool_]:
    """(N,) True for the photos that a file names."""
    ids = read_ids(path, key=key)
    rows = positions(ids, manifest.id)
    if unknown := [ids[number] for number in np.flatnonzero(rows < 0)]:
        raise ConfigError(
            f"{key}: {path}: {len(unknown)} of {len(ids)} ids are not in this data version, first {short(unknown[0])}; "
            "use ids of its labels.parquet, column id"
        )
    named = np.zeros(len(manifest), np.bool_)
    named[rows] = True
    tests = manifest.id[named & (manifest.split == "test")]
    if len(tests):
        raise ConfigError(
            f"{key}: {path}: {len(tests)} ids are test photos, first {tests[0]!r}, and a model must not be fitted to the "
            "photos that evaluate it; remove them"
        )
    if len(bare := manifest.id[named & (manifest.split == UNLABELLED)]):
        raise ConfigError(
            f"{key}: {path}: {len(bare)} photos have no label, first {bare[0]!r}; remove them, or label them with "
            "`cleanshelf feedback`"
        )
    return named


def read_ids(path: Path, *, key: str) -> list[str]:
    """Ids in column `id` of a .csv, .parquet or .jsonl file, or in any other file one per line.

    Args:
        key: key of the recipe that names the file, for messages.

    Raises:
        ConfigError: the file cannot be read, or lacks the column or repeats it.
    """
    try:
        check_file(path)
        if path.suffix.lower() in SUFFIXES:
            rows = read_rows(path, required=("id",))
            return [text_of(f"{path}: row {number}", record, "id") for number, record in rows]
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except BadTable as error:
        raise ConfigError(f"{key}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{key}: {path} cannot be read ({type(error).__name__}); give a file of ids: text with one id per line, or .csv, "
            ".parquet or .jsonl with a column id"
        ) from None


class Draws:
    """Endless batches of trusted photos, class-balanced if the classes differ in size.

    Batch n depends only on n and the seed.

    Args:
        target: (N,) classes of the photos.
    """

    def __init__(self, target: NDArray[np.int64], *, batch_size: int, seed: int) -> None:
        self.target, self.seed = target, seed
        self.batch_size = min(batch_size, len(target))
        counts = np.unique(target, return_counts=True)[1]
        self.power = 1.0 if counts.min() == counts.max() else 0.0

    def __getitem__(self, number: int) -> NDArray[np.int64]:
        """(batch_size,) positions in `target`; each pass over the photos ends with its last full batch."""
        epoch, batch = divmod(number, len(self.target) // self.batch_size)
        drawn = draw_epoch(self.target, power=self.power, seed=self.seed, epoch=epoch)
        return drawn[batch * self.batch_size : (batch + 1) * self.batch_size]
