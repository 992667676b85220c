"""Accounts of an ingestion: what became of every file, and the classes and splits of the new version."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from flows.delivery.folders import SYSTEM
from flows.delivery.rows import Delivery
from flows.errors import AccountsDiffer
from models.data.manifest import SPLITS

NAMED = 20  # classes or files that a report names
TAKEN = "taken"  # new photos without a decision
SAID = {
    "conflict": "in conflict",
    "duplicate": "duplicates",
    "near-test": "near a test photo",
    "near-train": "near a train photo",
}


@dataclass(frozen=True)
class Accounts:
    """Numbers of the files that a delivery lists, by what became of each; they add up to `seen`.

    files: taken, duplicate, quarantined, the decisions on new photos that are left out (conflict, near-test, near-train),
    "not a photo" and hidden ones. not_photos: of each suffix the number and one path. closed: hidden folders, which are
    not opened. repeated: rows that name a file that another row names too; they are among the duplicates.
    """

    seen: int
    files: dict[str, int]
    not_photos: dict[str, dict[str, Any]]
    closed: list[str]
    repeated: int


def account(delivery: Delivery, decisions: NDArray[np.object_], *, usable: int, quarantined: int) -> Accounts:
    """Accounts of a delivery with `usable` rows, by the decisions (N,) on its new photos.

    Raises:
        AccountsDiffer: the numbers do not add up to those of the files.
    """
    passed = delivery.passed
    new = {TAKEN if name == "" else str(name): number for name, number in Counter(decisions.tolist()).items()}
    files = {
        TAKEN: 0,
        **new,
        "duplicate": usable - len(decisions),
        "quarantined": quarantined,
        "not a photo": passed.files.total() - passed.files[SYSTEM],
        SYSTEM: passed.files[SYSTEM],
    }
    if sum(files.values()) != delivery.seen:
        raise AccountsDiffer(
            f"{delivery.folder}: {delivery.seen:,} files were listed, but {sum(files.values()):,} are accounted for "
            f"({', '.join(f'{number:,} {name}' for name, number in files.items())}); nothing was changed, ingest again"
        )
    kinds = {
        kind: {"files": number, "example": passed.examples[kind]}
        for kind, number in passed.files.most_common(NAMED)
        if kind != SYSTEM
    }
    rows = delivery.rows["path"]
    repeated = len(rows) - pc.count_distinct(rows).as_py() if files["duplicate"] else 0
    return Accounts(delivery.seen, files, kinds, passed.closed[:NAMED], repeated)


def class_splits(classes: pa.Table) -> dict[str, Any]:
    """Numbers of classes and kept photos in each split, and classes without train or test photos, from `class_counts`.

    Returns `classes`; `photos` and `classes_with`, by split; and `without`: for train and test, `number` and `first`, the
    names of the first NAMED.
    """
    without = {split: classes["class"].filter(pc.equal(classes[split], 0)) for split in SPLITS}
    return {
        "classes": len(classes),
        "photos": {split: pc.sum(classes[split], min_count=0).as_py() for split in SPLITS},
        "classes_with": {split: len(classes) - len(without[split]) for split in SPLITS},
        "without": {
            split: {"number": len(without[split]), "first": without[split].slice(0, NAMED).to_pylist()}
            for split in ("train", "test")
        },
    }


def sentences(accounts: Mapping[str, Any], splits: Mapping[str, Any]) -> list[str]:
    """Lines for people: files accounted for, and classes and splits."""
    parts = [f"{number:,} {SAID.get(name, name)}" for name, number in accounts["files"].items() if number]
    lines = [f"{accounts['seen']:,} files: {', '.join(parts)}"]
    lines += [f"  not a photo {each['files']:,}: {kind}, such as {each['example']}"
              for kind, each in accounts["not_photos"].items()]  # fmt: skip
    lines += [f"  not opened: {folder}/" for folder in accounts["closed"]]
    if accounts["repeated"]:
        lines.append(f"  {accounts['repeated']:,} rows name a file that another row names too")
    photos, classes = splits["photos"], splits["classes_with"]
    counts = ", ".join(f"{split} {photos[split]:,} of {classes[split]:,} classes" for split in SPLITS)
    lines.append(f"{splits['classes']:,} classes; photos in {counts}")
    for split, found in splits["without"].items():
        if found["number"]:
            more = ", ..." if found["number"] > len(found["first"]) else ""
            lines.append(f"  without a {split} photo {found['number']:,}: {', '.join(found['first'])}{more}")
    return lines
