"""Label issues of a data version as other tools get them: worst first, with the given label and the suggestion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contract.labels import shown
from flows.errors import InputError
from flows.review.photos import Photos
from models.data.manifest import FLAGGED

NO_PRODUCT = "(not a product)"  # stands for "none of the products" where a tool wants a label


@dataclass(frozen=True)
class Suspect:
    """A photo whose label is in doubt.

    suggested: "" if nothing is suggested. probability: of the suggestion, None if it is not known. score: quality of the
    given label in [0, 1], None if it was not measured.
    """

    photo: str
    given: str
    suggested: str
    probability: float | None
    score: float | None
    split: str
    source: str
    version: str

    @property
    def file(self) -> str:
        """Path of its picture in an export."""
        return f"photos/{self.photo}.jpg"


@dataclass(frozen=True)
class Suggested:
    """(N,) code of the label in question, of the class to take instead (-1: none), and its probability (NaN: unknown)."""

    asked: NDArray[np.int32]
    suggested: NDArray[np.int32]
    probability: NDArray[np.float32]


def suggested(photos: Photos, stages: Path) -> Suggested:
    """Suggestions for each photo of a version."""
    is_relabelled = photos.decision.is_one_of(["relabelled"])
    return Suggested(
        photos.given.codes,
        np.where(is_relabelled, photos.label.codes, np.int32(-1)),
        np.full(len(photos), np.nan, np.float32),
    )


def worst(photos: Photos, found: Suggested, *, given: str = "", suggestion: str = "", limit: int = 0) -> list[int]:
    """Rows of the label issues, worst score first; only those of a given label or of a suggestion; limit 0: all.

    Raises:
        InputError: the version has no such class.
    """
    chosen = photos.decision.is_one_of(FLAGGED)
    for option, label, codes in (("--given", given, found.asked), ("--suggested", suggestion, found.suggested)):
        if label:
            chosen &= codes == _code(photos, option, label)
    rows = np.flatnonzero(chosen)
    rows = rows[np.argsort(photos.score[rows], kind="stable")]
    return [int(row) for row in (rows[:limit] if limit else rows)]


def suspects(photos: Photos, found: Suggested, rows: Sequence[int]) -> list[Suspect]:
    """These photos as suspects."""
    return [
        Suspect(
            photos.name(row),
            photos.classes[found.asked[row]],
            photos.classes[found.suggested[row]] if found.suggested[row] >= 0 else "",
            _known(found.probability[row]),
            _known(photos.score[row]),
            photos.split[row],
            photos.source[row],
            photos.version,
        )
        for row in rows
    ]


def _code(photos: Photos, option: str, label: str) -> int:
    code = photos.label.code(photos.products.spelt(label))
    if code < 0:
        raise InputError(f"{option} {shown(label)}: data version {photos.version[:12]} has no such product; correct it")
    return code


def _known(value: np.floating) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
