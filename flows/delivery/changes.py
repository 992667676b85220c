"""Changes of the assortment by a delivery, each in one line, with the classes concerned in files: new and renamed ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from models.data.manifest import class_counts, read_table

CLASSES, RENAMED = "classes.csv", "renamed.csv"
SHARE = 0.5  # of a class's photos that came again under one new name, from which on it counts as renamed
NAMED = 3
FEW = 3  # classes that need no file


def describe_changes(base: Path | None, out: Path, files: Path) -> list[str]:
    """Lines about the classes of the version in `out`, beside those of `base`; writes CLASSES and RENAMED into `files`.

    CLASSES has a row for each class: its photos by split, and a note. RENAMED can be given to `cleanshelf feedback` as it is:
    the ids of the photos that came again under a new name, and that name.
    """
    labels, conflicts = read_table(out, name="labels"), read_table(out, name="conflicts")
    classes = class_counts(labels)
    files.mkdir(parents=True, exist_ok=True)
    (files / RENAMED).unlink(missing_ok=True)
    before = None if base is None else class_counts(read_table(base, name="labels"))
    renamed = pairs(labels.select(["id", "given_label"]), conflicts.select(["id", "label"]), before)
    is_new = np.zeros(len(classes), np.bool_)
    if before is not None:
        is_new = ~pc.is_in(classes["class"], value_set=before["class"].combine_chunks()).to_numpy()
    _write(classes.append_column("note", pa.array(_notes(classes, is_new), pa.string())), files / CLASSES)
    lines = []
    new = classes["class"].filter(pa.array(is_new))
    if len(new) > FEW:
        lines.append(f"{len(new):,} classes are new, such as {_named(new)}; {files / CLASSES} lists them")
    untested = classes["class"].filter(
        pc.and_(pc.equal(classes["test"], 0), pc.greater(classes["photos"], classes["left_out"]))
    )
    if len(untested) > FEW:
        lines.append(
            f"{len(untested):,} classes have no test photo, such as {_named(untested)}; {files / CLASSES} lists them"
        )
    if len(renamed):
        _write(pa.table({"id": renamed["id"], "label": renamed["label"]}), files / RENAMED)
        old = pc.unique(renamed["given_label"])
        first = renamed.slice(0, 1).to_pylist()[0]
        lines.append(
            f"{len(old):,} classes look renamed, such as {first['given_label']!r} to {first['label']!r}: their {len(renamed):,} "
            f"photos came again under the new name, and are left out as conflicts; `cleanshelf feedback {files / RENAMED}` "
            "takes the new names"
        )
    return lines


def pairs(labels: pa.Table, conflicts: pa.Table, before: pa.Table | None) -> pa.Table:
    """Photos of classes that look renamed: id, given_label, and label, which is the new name.

    Args:
        labels: id and given_label of every photo. conflicts: id and label of every claim on photos in conflict.
        before: `class_counts` of the version before; None if there is none, and then nothing was renamed.
    """
    empty = pa.table({"id": [], "given_label": [], "label": []}, schema=_PAIRS)
    if before is None or not len(conflicts):
        return empty
    claims = conflicts.group_by(["id", "label"]).aggregate([]).join(labels, "id", join_type="inner")
    known = pc.is_in(claims["label"], value_set=before["class"].combine_chunks())
    claims = claims.filter(pc.invert(known))
    counts = claims.group_by(["given_label", "label"]).aggregate([([], "count_all")])
    sizes = pa.table({"given_label": before["class"], "size": before["photos"]})
    counts = counts.join(sizes, "given_label", join_type="inner")
    many = counts.filter(pc.greater_equal(counts["count_all"], pc.multiply(SHARE, counts["size"])))
    chosen = many.sort_by([("count_all", "descending"), ("label", "ascending")]).group_by(
        "given_label", use_threads=False
    )
    names = chosen.aggregate([("label", "first")]).rename_columns(["given_label", "label"])
    found = claims.join(names, ["given_label", "label"], join_type="inner")
    return found.select(["id", "given_label", "label"]).sort_by([("given_label", "ascending"), ("id", "ascending")])


_PAIRS = pa.schema([("id", pa.string()), ("given_label", pa.string()), ("label", pa.string())])


def _notes(classes: pa.Table, is_new: NDArray[np.bool_]) -> list[str]:
    """A note on each class: new, one photo, no train or test photo; several are joined."""
    photos, left_out, train, test = (classes[name].to_numpy() for name in ("photos", "left_out", "train", "test"))
    cases = {
        "new": is_new,
        "one photo": photos - left_out == 1,
        "no train photo": train == 0,
        "no test photo": test == 0,
    }
    words = np.array(list(cases))
    return ["; ".join(words[row]) for row in np.stack(list(cases.values()), 1)]


def _write(table: pa.Table, file: Path) -> None:
    pyarrow.csv.write_csv(table, file)


def _named(names: pa.ChunkedArray) -> str:
    return ", ".join(map(repr, names.slice(0, NAMED).to_pylist()))
