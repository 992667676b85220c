"""Photos whose labels are trusted: what steps are judged by (`[proof]`), what a loss's own numbers are learnt from (`[meta]`).

They are never trained on.
"""

from __future__ import annotations

import csv
import dataclasses
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from models.data.manifest import OUTSIDE, Manifest
from models.data.samplers import draw_epoch
from models.errors import ConfigError

log = logging.getLogger(__name__)

VALIDATION = "val"  # of `meta.photos`: the validation photos instead of a file
LEAST = 2  # photos of a batch, because of batch norm


def selection_photos(manifest: Manifest) -> NDArray[np.bool_]:
    """(N,) the photos that steps are judged by: validation photos of a class that is learnt, whatever cleaning says of them.

    A photo that came under several labels has none to be judged by.

    Those that it believes are the ones its own networks recognise: they prefer what resembles these networks, and leave whole
    classes without a say. Wrong labels shrink every gain alike (docs/tasks/kept-steps.md has figures).
    """
    return (manifest.split == VALIDATION) & (manifest.target >= 0) & ~np.isin(manifest.decision, OUTSIDE)


def with_selection_photos(manifest: Manifest, photos: str) -> Manifest:
    """The manifest as a run sees it whose steps are judged by the photos that `proof.photos` names: the same for "".

    They become the validation photos, kept whatever cleaning says of them; the other validation photos are learnt from.

    Raises:
        ConfigError: the file cannot be read, names unknown or test photos, or leaves a class without photos to learn from.
    """
    if not photos:
        return manifest
    named = _named(Path(photos), manifest, key="proof.photos")
    split = np.where((manifest.split == VALIDATION) & (manifest.target >= 0), "train", manifest.split).astype(object)
    split[named] = VALIDATION
    seen = dataclasses.replace(manifest, split=split, kept=manifest.kept | named)
    lost = sorted({*manifest.classes} - {*seen.classes})
    if lost:
        raise ConfigError(
            f"proof.photos: {photos}: names every photo of {len(lost)} classes, first {lost[0]!r}, and leaves none to learn "
            "them from; take some out"
        )
    return seen


def trusted_rows(photos: str, manifest: Manifest) -> NDArray[np.int64]:
    """Positions in the manifest of the photos that `meta.photos` names, sorted; none for "".

    Dropped photos, and photos of a class without a train photo, are left out.

    Raises:
        ConfigError: the file cannot be read, names unknown or test photos, or fewer than two can be used.
    """
    if not photos:
        return np.empty(0, np.int64)
    named = manifest.split == VALIDATION if photos == VALIDATION else _named(Path(photos), manifest, key="meta.photos")
    rows = np.flatnonzero(named & manifest.kept & (manifest.target >= 0))
    if len(rows) < LEAST:
        raise ConfigError(
            f"meta.photos: {photos} leaves {len(rows)} photos to learn from ({int(named.sum())} before dropped ones and "
            f"unknown classes); give at least {LEAST}, better one of each class"
        )
    missing = len(manifest.classes) - len(np.unique(manifest.target[rows]))
    if missing:
        log.warning("meta.photos: %d of %d classes have no trusted photo; what is learnt suits the others",
                    missing, len(manifest.classes))  # fmt: skip
    return rows


def _named(path: Path, manifest: Manifest, *, key: str) -> NDArray[np.bool_]:
    ids = np.array(read_ids(path, key=key), dtype=object)
    unknown = ids[~np.isin(ids, manifest.id)]
    if len(unknown):
        raise ConfigError(
            f"{key}: {path}: {len(unknown)} of {len(ids)} ids are not in this data version, first {unknown[0]!r}; "
            "take them from column id of its labels.parquet"
        )
    named: NDArray[np.bool_] = np.isin(manifest.id, ids)
    tests = manifest.id[named & (manifest.split == "test")]
    if len(tests):
        raise ConfigError(
            f"{key}: {path}: {len(tests)} ids are test photos, first {tests[0]!r}, and a model must not learn from "
            "what it is judged by; take them out"
        )
    return named


def read_ids(path: Path, *, key: str) -> list[str]:
    """Ids of a text file, one a line, or of column `id` of a .csv or .parquet file; `key` of the recipe names it.

    Raises:
        ConfigError: no such file or column, or not of the kind that its name says.
    """
    try:
        if path.suffix == ".parquet":
            return [str(value) for value in pq.read_table(path, columns=["id"])["id"].to_pylist()]
        with path.open(encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                return [row["id"] for row in csv.DictReader(file)]
            return [line.strip() for line in file if line.strip()]
    except KeyError:
        raise ConfigError(f"{key}: {path}: has no column id; name one so in its first line") from None
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise ConfigError(
            f"{key}: {path} cannot be read ({type(error).__name__}); give a file of ids: text with one a line, or .csv or "
            ".parquet with a column id"
        ) from None


class Draws:
    """Batches of trusted photos without end: every class alike where they are uneven. The n-th depends on n and seed only.

    Args:
        target: (N,) classes of the photos.
    """

    def __init__(self, target: NDArray[np.int64], *, batch_size: int, seed: int) -> None:
        self.target, self.seed = target, seed
        self.batch_size = min(batch_size, len(target))
        counts = np.unique(target, return_counts=True)[1]
        self.power = 1.0 if counts.min() == counts.max() else 0.0

    def __getitem__(self, number: int) -> NDArray[np.int64]:
        """(batch_size,) positions in `target`; a pass over the photos ends with its last whole batch."""
        turn, place = divmod(number, len(self.target) // self.batch_size)
        drawn = draw_epoch(self.target, power=self.power, seed=self.seed, epoch=turn)
        return drawn[place * self.batch_size : (place + 1) * self.batch_size]
