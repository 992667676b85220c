"""Filters of the review, and the columns that they are applied to: photos of one scope, in the order of the review."""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, field_validator

from flows.review.photos import Photos, Words
from flows.review.selections import Selections
from flows.review.suggestions import Suggestions
from models.cleaning.budget import worth_looking_at
from models.data.manifest import CHECKED, FLAGGED

# label issues of cleaning; the photos that are worth looking at; every photo of the version
Scope = Literal["issues", "worth", "all"]
ISSUES: Scope = "issues"
WORTH: Scope = "worth"
SCOPES: tuple[Scope, ...] = get_args(Scope)
Score = Annotated[float, Field(ge=0, le=1)]
LOOKS = 1000  # photos that are worth looking at
KEPT_MASKS = 16  # filters whose photos are remembered per scope; 2.5 MB each at 2.5 million photos


class Filter(BaseModel, frozen=True):
    """The photos to show; a criterion that is empty does not count.

    given: the label in question; suggested: the class to take instead; above, below: score in [above, below); selection:
    token of `Selections`.
    """

    scope: Scope = ISSUES
    given: str = ""
    suggested: str = ""
    label: str = ""
    source: str = ""
    split: str = ""
    decision: str = ""
    above: Score | None = None
    below: Score | None = None
    selection: str = ""

    @field_validator("above", "below", mode="before")
    @classmethod
    def _blank_is_none(cls, value: Any) -> Any:
        """A form sends an empty field as an empty text."""
        return None if value == "" else value


class Ranked:
    """Photos of one scope in the order of the review.

    The worst score comes first, photos without a score last; among those that are worth looking at, the one whose decision
    will probably help most (models.cleaning.budget).

    R photos. rows: (R,) their rows in `Photos`; rank: (N,) position of each photo here, -1: it is not in the scope. The
    other columns are (R,) too, so that a filter compares them in the order in which photos are shown.
    """

    def __init__(self, photos: Photos, suggestions: Suggestions, selections: Selections, *, scope: str) -> None:
        self.photos, self.selections = photos, selections
        rows = worth(photos, suggestions) if scope == WORTH else rows_of_scope(photos, scope)
        order = np.arange(len(rows)) if scope == WORTH else np.argsort(photos.score[rows], kind="stable")
        self.rows = rows[order].astype(np.int32)
        self.rank = np.full(len(photos), -1, np.int32)
        self.rank[self.rows] = np.arange(len(rows), dtype=np.int32)
        self.given, self.suggested = suggestions.asked[self.rows], suggestions.suggested[self.rows]
        words = {"label": photos.label, "source": photos.source, "split": photos.split, "decision": photos.decision}
        self.words = {name: (column, _small(column)[self.rows]) for name, column in words.items()}
        self.score = photos.score[self.rows]
        self.confusions = self._confusions()
        self.mask = functools.lru_cache(KEPT_MASKS)(self._mask)

    def __len__(self) -> int:
        return len(self.rows)

    def _confusions(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """(P, 2) codes of given and suggested label of each confusion, and (R,) the photo's confusion; -1: none."""
        found = np.flatnonzero(self.suggested >= 0)
        key = self.given[found].astype(np.int64) * len(self.photos.classes) + self.suggested[found]
        keys, codes = np.unique(key, return_inverse=True)
        each = np.full(len(self), -1, np.int32)
        each[found] = codes
        return np.stack(np.divmod(keys, max(1, len(self.photos.classes))), axis=1), each

    def _mask(self, wanted: Filter) -> NDArray[np.bool_]:
        """(R,) True for each photo that matches, without looking at what people decided."""
        mask = self._selected(wanted.selection) if wanted.selection else np.ones(len(self), bool)
        for codes, label in ((self.given, wanted.given), (self.suggested, wanted.suggested)):
            if label:
                mask &= codes == _code(self.photos, label)
        for name, (column, small) in self.words.items():
            if value := getattr(wanted, name):
                mask &= small == _or_nothing(column.code(value))
        if wanted.above is not None:
            mask &= self.score >= wanted.above
        if wanted.below is not None:
            mask &= self.score < wanted.below
        return mask

    def _selected(self, token: str) -> NDArray[np.bool_]:
        return self.selections.get(token).marks(self.photos.id[self.rows])


def worth(photos: Photos, suggestions: Suggestions) -> NDArray[np.int64]:
    """Rows of at most LOOKS training photos that cleaning scored and no person decided, the one that is worth most first."""
    is_open = photos.split.is_one_of(["train"]) & ~photos.decision.is_one_of([CHECKED])
    rows = np.flatnonzero(is_open & ~np.isnan(photos.score))
    asked, suggested = suggestions.asked[rows].astype(np.int64), suggestions.suggested[rows].astype(np.int64)
    issue = photos.decision.is_one_of(FLAGGED)[rows]
    return rows[worth_looking_at(asked, photos.score[rows], suggested, count=LOOKS, is_issue=issue)]


def rows_of_scope(photos: Photos, scope: str) -> NDArray[np.int64]:
    """Rows of the photos of a scope."""
    return np.flatnonzero(photos.decision.is_one_of(FLAGGED)) if scope == ISSUES else np.arange(len(photos))


def _small(column: Words) -> NDArray[np.integer]:
    """Codes in the smallest type that holds them."""
    return column.codes.astype(np.min_scalar_type(len(column.values)))


def _code(photos: Photos, label: str) -> int:
    return _or_nothing(photos.label.code(label))


def _or_nothing(code: int) -> int:
    """A code that equals none for a value that no photo has; -1 stands for photos without a suggestion."""
    return code if code >= 0 else -2
