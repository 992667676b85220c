"""Contents of data versions, printed for people: classes by split, photos left out, and changes between two versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flows.report.terminal import print_table
from models.data.manifest import SPLITS

if TYPE_CHECKING:
    import pyarrow as pa

    from flows.data.diff import DataDiff

SHOWN = 20  # rows of a long table
NAMED = 5  # classes or photos that a line names
ALL_OF_THEM = "--out FILE or --json has all"


def print_listing(rows: pa.Table, *, photos: str) -> None:
    """Prints the first of the rows; `photos` says what they are."""
    if not len(rows):
        return print(f"no {photos}")
    print_table(rows.column_names, rows.slice(0, SHOWN).to_pylist())
    print(f"{len(rows)} {photos}{_more(len(rows), SHOWN)}")


def print_classes(classes: pa.Table) -> None:
    """Prints photos per class and split: all, if they are few; else the largest and the smallest; and what is missing."""
    rows = classes.sort_by([("photos", "descending"), ("class", "ascending")])
    columns = classes.column_names
    total = {"class": f"all {len(rows)}", **{name: sum(rows[name].to_pylist()) for name in columns[1:]}}
    if len(rows) <= SHOWN:
        shown = rows.to_pylist()
    else:
        half, gap = SHOWN // 2, {"class": f"... {len(rows) - SHOWN} more"}
        shown = [*rows.slice(0, half).to_pylist(), gap, *rows.slice(len(rows) - half).to_pylist()]
    print_table(columns, [*shown, total])
    for split in SPLITS:
        none = [name for name, photos in zip(*(classes[each].to_pylist() for each in ("class", split)), strict=True)
                if not photos]  # fmt: skip
        if none:
            names = ", ".join(map(repr, none[:NAMED]))
            print(f"classes without a {split} photo: {len(none)}, such as {names}{_more(len(none), NAMED)}")


def print_reasons(reasons: pa.Table) -> None:
    """Prints how many photos and rows were excluded for each reason, and where all of them are listed."""
    if not len(reasons):
        return print("nothing was left out or refused")
    print()
    print_table(reasons.column_names, reasons.slice(0, SHOWN).to_pylist())
    more = len(reasons) - SHOWN
    print(
        f"{f'{more} more reasons; ' if more > 0 else ''}`cleanshelf data show --excluded --out FILE` writes all of them"
    )


def print_diff(diff: DataDiff, changes: Sequence[str]) -> None:
    """Prints the numbers of each change, then the most frequent changes from label to label with some ids."""
    numbers = [f"{getattr(diff, change)} {change}" for change in (*changes, "unchanged")]
    rows = [
        {
            "change": each.change,
            "from": _state(each.from_outcome, each.from_label),
            "to": _state(each.to_outcome, each.to_label),
            "photos": each.photos,
            "ids": " ".join(each.ids[:3]) + (" ..." if each.photos > 3 else ""),
        }
        for each in diff.changes[:SHOWN]
    ]
    print(f"photos: {', '.join(numbers)}")
    if rows:
        print_table(("change", "from", "to", "photos", "ids"), rows)
        if len(diff.changes) > SHOWN:
            print(f"{len(diff.changes)} changes{_more(len(diff.changes), SHOWN)}")


def _state(outcome: str, label: str) -> str:
    return f"{label} ({outcome})" if label else outcome


def _more(number: int, shown: int) -> str:
    return f"; {ALL_OF_THEM}" if number > shown else ""
