"""Classes of a data version: sample photos of each, and search by a part of the name."""

from __future__ import annotations

import functools
import unicodedata

import numpy as np
from numpy.typing import NDArray

from flows.review.photos import Photos
from models.data.manifest import CHECKED, FLAGGED

SAMPLES = 6
KEPT_SAMPLES = 8_192  # classes whose samples are remembered
FOUND = 20  # classes that a search returns


class Classes:
    """The classes that a photo of one version can be given: those of the training photos."""

    def __init__(self, photos: Photos) -> None:
        self.photos = photos
        self.samples = functools.lru_cache(KEPT_SAMPLES)(self._samples)
        train = photos.split.is_one_of(["train"])
        size = len(photos.classes)
        counts = np.bincount(photos.given.codes[train], minlength=size)
        self.names = [searched(name) for name in photos.classes]
        _ = photos.by_label  # sorted now, so that no page waits for it later
        self.is_product = counts + np.bincount(photos.label.codes[train], minlength=size) > 0

    def has(self, label: str) -> bool:
        """True if a training photo has this label, so that others can be given it."""
        code = self.photos.label.code(label)
        return code >= 0 and bool(self.is_product[code])

    def _samples(self, code: int) -> tuple[int, ...]:
        """Rows of kept photos of a class: first those that people checked, then those with the best scores."""
        photos, rows = self.photos, self.photos.of_class(code)
        trust = np.nan_to_num(photos.score[rows], nan=-1.0)
        decided = photos.decision.codes[rows]
        trust[decided == photos.decision.code(CHECKED)] = 2.0
        trust[np.isin(decided, [photos.decision.code(each) for each in FLAGGED])] -= 4.0
        return tuple(rows[np.argsort(-trust, kind="stable")[: SAMPLES + 1]].tolist())

    def search(self, text: str, *, likely: NDArray[np.integer]) -> list[int]:
        """Codes of classes whose name has `text` in it, without regard to case and accents.

        likely: codes that come first. Then come names that begin with the text, names with a word that does, and others.
        """
        wanted, names = searched(text), self.names
        first = [int(code) for code in likely if code >= 0 and wanted in names[code]]
        groups: list[list[int]] = [first, [], [], []]
        for code, name in enumerate(names):
            if wanted in name and self.is_product[code]:
                groups[1 if name.startswith(wanted) else 2 if f" {wanted}" in name else 3].append(code)
        return list(dict.fromkeys(code for group in groups for code in group))[:FOUND]


def searched(text: str) -> str:
    """A text without case, accents and spaces at its ends."""
    plain = "".join(each for each in unicodedata.normalize("NFKD", text) if not unicodedata.combining(each))
    return plain.casefold().strip()
