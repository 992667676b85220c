"""Label issues of a run: the worst ones, and the products and suppliers that have most of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from flows.report.figures import SHOWN, Figure
from flows.workspace.results import DataFolder
from models.cleaning import HALF
from models.data.manifest import CHECKED, FLAGGED, OUTSIDE, Manifest, read_manifest, read_table_file

WORST = 48  # label issues on the contact sheet
CERTAINTY = 1.645  # standard errors of a one-sided bound at 95 %


def label_figures(cleaned: DataFolder, stages: Path) -> list[Figure]:
    """Figures of the label issues in the data version that cleaning made.

    stages: the folder of the cached results, in which the scores are that suggest a label.
    """
    manifest = read_manifest(cleaned)
    scored = ~np.isnan(manifest.score) & (manifest.split == "train")
    flagged = manifest.has_decision(FLAGGED)[scored]
    products = noisiest(manifest.given_target[scored], flagged, manifest.classes, named="product")
    supplier, names = suppliers(cleaned)
    sources = noisiest(supplier[scored], flagged, names, named="supplier")
    return [
        Figure("Worst label issues", worst(manifest, stages), name="label issues"),
        Figure("Products with the most label issues", products, ("share",), "noisy products"),
        Figure("Suppliers with the most label issues", sources, ("share",), "noisy suppliers"),
    ]


def num_issues(cleaned: DataFolder) -> int:
    """The number of training photos whose label cleaning flagged."""
    labels = read_table_file(cleaned / "labels.parquet", name="labels", columns=("split", "decision"))
    flagged = pc.is_in(labels["decision"], value_set=pa.array(FLAGGED))
    return int(pc.sum(pc.and_(flagged, pc.equal(labels["split"], "train"))).as_py() or 0)


def worst(manifest: Manifest, stages: Path) -> list[dict[str, Any]]:
    """The photos with the lowest label quality below 0.5, worst first, with the suggested label; None where none is known.

    Photos that a person checked, or that ingestion left out, are not among them.
    """
    issue = (manifest.score < HALF) & ~manifest.has_decision((CHECKED, *OUTSIDE))
    rows = np.flatnonzero(issue)
    rows = rows[np.argsort(manifest.score[rows], kind="stable")[:WORST]]
    suggested = suggestions(manifest, rows, stages)
    return [
        {
            "photo": manifest.id[row],
            "given label": manifest.given_label[row],
            "suggested label": suggested.get(manifest.id[row]),
            "score": float(manifest.score[row]),
            "decision": manifest.decision[row],
        }
        for row in rows.tolist()
    ]


def suggestions(manifest: Manifest, rows: NDArray[np.int64], stages: Path) -> dict[str, str]:
    """Suggested labels of the photos in these rows, by id: what cleaning relabelled them to, or the best other class.

    The scores of a photo are in the folder that it names as `scored_by`; if that is gone, the photo is left out.
    """
    given = dict(zip(manifest.id[rows], manifest.given_target[rows].tolist(), strict=True))
    folders = {scored_by.split(" ")[0] for scored_by in manifest.scored_by[rows]}
    found: dict[str, str] = {}
    for file in sorted(stages / folder / "scores.parquet" for folder in folders):
        if not file.exists():
            continue
        wanted = pq.read_table(file, columns=["id", "target", "top"], filters=pc.field("id").isin(list(given)))
        for photo, target, top in zip(*(column.to_pylist() for column in wanted), strict=True):
            other = next((each for each in top if each != target), None)
            if other is not None and target == given[photo]:  # the classes are those of this version
                found.setdefault(photo, manifest.classes[other])
    moved = rows[manifest.decision[rows] == "relabelled"]
    return found | dict(zip(manifest.id[moved], manifest.label[moved], strict=True))


def suppliers(data: DataFolder) -> tuple[NDArray[np.int64], list[str]]:
    """(N,) position of each photo's supplier among their names, and the names; -1 if the delivery named none."""
    sources = read_table_file(data / "index.parquet", name="index", columns=("source",))["source"]
    encoded = sources.combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    code = encoded.indices.to_numpy().astype(np.int64)
    return np.where(code == (names.index("") if "" in names else -2), -1, code), names


def noisiest(
    code: NDArray[np.int64], flagged: NDArray[np.bool_], names: Sequence[str], *, named: str
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
