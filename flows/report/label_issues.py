"""Label issues of a run: the worst ones, and the products and suppliers that have most of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.report.figures import SHOWN, Figure
from flows.review.photos import Photos, Words, read_photos
from flows.review.suggestions import read_suggestions
from flows.workspace.results import DataFolder
from models.cleaning import HALF
from models.data.manifest import CHECKED, FLAGGED, OUTSIDE

WORST = 48  # label issues on the contact sheet
CERTAINTY = 1.645  # standard errors of a one-sided bound at 95 %


def label_figures(cleaned: DataFolder, stages: Path) -> list[Figure]:
    """Figures of the label issues in the data version that cleaning made.

    stages: the folder of the cached results, in which the scores are that suggest a label.
    """
    photos = read_photos(cleaned, version=cleaned.name)
    scored = ~np.isnan(photos.score) & photos.split.is_one_of(["train"])
    flagged = photos.decision.is_one_of(FLAGGED)[scored]
    products = noisiest(photos.given.codes[scored], flagged, photos.given.values, named="product")
    sources = noisiest(suppliers(photos.source)[scored], flagged, photos.source.values, named="supplier")
    return [
        Figure("Worst label issues", worst(photos, stages), name="label issues"),
        Figure("Products with the most label issues", products, ("share",), "noisy products"),
        Figure("Suppliers with the most label issues", sources, ("share",), "noisy suppliers"),
    ]


def num_issues(cleaned: DataFolder) -> int:
    """The number of training photos whose label cleaning flagged."""
    photos = read_photos(cleaned, version=cleaned.name)
    return int((photos.decision.is_one_of(FLAGGED) & photos.split.is_one_of(["train"])).sum())


def worst(photos: Photos, stages: Path) -> list[dict[str, Any]]:
    """The photos with the lowest label quality below 0.5, worst first, with the suggested label; None where none is known.

    Photos that a person checked, or that ingestion left out, are not among them.
    """
    rows = np.flatnonzero((photos.score < HALF) & ~photos.decision.is_one_of((CHECKED, *OUTSIDE)))
    rows = rows[np.argsort(photos.score[rows], kind="stable")[:WORST]]
    suggested = read_suggestions(photos, stages).suggested if len(rows) else np.empty(0, np.int32)
    return [
        {
            "photo": photos.name(row),
            "given label": photos.given[row],
            "suggested label": photos.classes[suggested[row]] if suggested[row] >= 0 else None,
            "score": float(photos.score[row]),
            "decision": photos.decision[row],
        }
        for row in rows.tolist()
    ]


def suppliers(source: Words) -> NDArray[np.int64]:
    """(N,) position of each photo's supplier; -1 if the delivery named none."""
    return np.where(source.is_one_of([""]), -1, source.codes).astype(np.int64)


def noisiest(
    code: NDArray[np.integer], flagged: NDArray[np.bool_], names: Sequence[str], *, named: str
) -> list[dict[str, Any]]:
    """The groups of photos with the largest share of label issues, as far as that share is certain.

    Args:
        code: (N,) position in `names` of each photo's group; below 0 for none.
        flagged: (N,) True for label issues.
        named: the name of the column with the group.
    """
    known = code >= 0
    photos = np.bincount(code[known], minlength=len(names))
    issues = np.bincount(code[known & flagged], minlength=len(names))
    order = np.argsort(-lower_bound(issues, photos), kind="stable")[:SHOWN]
    return [
        {
            named: names[i],
            "photos": int(photos[i]),
            "label issues": int(issues[i]),
            "share": float(issues[i] / photos[i]),
        }
        for i in order.tolist()
        if issues[i]
    ]


def lower_bound(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N,) lower end of Wilson's interval of part / whole (Wilson, JASA 1927), one-sided at 95 %; 0 where whole is 0.

    One label issue among one photo says less than fifty among a hundred.
    """
    n, z2 = np.maximum(whole, 1), CERTAINTY**2
    share = part / n
    spread = CERTAINTY * np.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    bound: NDArray[np.float64] = (share + z2 / (2 * n) - spread) / (1 + z2 / n)
    return np.where(whole > 0, bound, 0.0)
