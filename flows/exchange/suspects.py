"""Label issues of a data version as other tools get them: worst first, with the given label and the suggestion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from contract.labels import shown
from flows.errors import InputError
from flows.review.filters import ISSUES, Filter, Ranked
from flows.review.photos import Photos
from flows.review.selections import Selections
from flows.review.suggestions import Suggestions

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


def worst(photos: Photos, found: Suggestions, *, given: str = "", suggestion: str = "", limit: int = 0) -> list[int]:
    """Rows of the label issues in the order of the review; only those of a given label or of a suggestion; limit 0: all.

    Raises:
        InputError: the version has no such class.
    """
    wanted = Filter(given=_known(photos, "--given", given), suggested=_known(photos, "--suggested", suggestion))
    ranked = Ranked(photos, found, Selections(), scope=ISSUES)
    rows: list[int] = ranked.rows[ranked.mask(wanted)].tolist()
    return rows[:limit] if limit else rows


def suspects(photos: Photos, found: Suggestions, rows: Sequence[int]) -> list[Suspect]:
    """These photos as suspects."""
    return [_suspect(photos, found, row) for row in rows]


def _suspect(photos: Photos, found: Suggestions, row: int) -> Suspect:
    suggested = int(found.suggested[row])
    probability = [float(found.probs[row, place]) for place in np.flatnonzero(found.top[row] == suggested)]
    return Suspect(
        photos.name(row),
        photos.classes[found.asked[row]],
        photos.classes[suggested] if suggested >= 0 else "",
        round(probability[0], 6) if probability and suggested >= 0 else None,
        None if np.isnan(photos.score[row]) else round(float(photos.score[row]), 6),
        photos.split[row],
        photos.source[row],
        photos.version,
    )


def _known(photos: Photos, option: str, label: str) -> str:
    """The class of the version that `label` means; "" stays "" and stands for all."""
    known = photos.products.spelt(label) if label else ""
    if label and known not in photos.products.labels:
        raise InputError(f"{option} {shown(label)}: data version {photos.version[:12]} has no such product; correct it")
    return known
