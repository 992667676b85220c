"""Makes a data version from labels that people gave, such as reports of users or decisions on a review page.

A plain function and not a flow, because a user waits for the answer.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from contract.labels import KnownLabels, difference
from flows.data.derive import link_unchanged
from flows.data.versions import DataVersions
from flows.delivery.rows import read_records, text_in
from flows.errors import BadDelivery, InputError
from flows.orchestrator.events import post, selected
from flows.review.decisions import SKIP, Decisions
from flows.review.photos import PERSON
from flows.run.run import code_hash
from flows.workspace import DATA_LOCK, Workspace
from models.data.manifest import (
    CHECKED,
    NEAR,
    UNLABELLED,
    Manifest,
    read_manifest,
    read_table,
    write_labels,
    write_version,
)
from models.data.positions import positions
from models.data.records import short
from models.recipe.config import digest

REQUIRED = ("label",)
COLUMNS = ("id", "path", "label", "reason")
OWN = ("labels.parquet", "VERSION.json")  # the files that change; the others are linked


@dataclass(frozen=True)
class HumanLabel:
    """Label that a person gave a photo; "" says that it shows none of the products."""

    label: str
    reason: str


@dataclass(frozen=True)
class Feedback:
    """Numbers of photos, and the data version that was made; None in a preview.

    confirmed: photos that keep their label; relabelled: photos with another label; dropped: photos of no product;
    near: near-duplicates across the test split, which stay out of training whatever their label; labelled: photos that
    had no label.
    """

    confirmed: int
    relabelled: int
    dropped: int
    near: int
    labelled: int = 0
    data_version: str | None = None

    def in_words(self) -> str:
        """The numbers in one line, which add up to the photos that people decided about."""
        line = f"{self.confirmed} labels confirmed, {self.relabelled} changed, {self.dropped} photos dropped by people"
        line += f"; {self.labelled} photos got their first label" if self.labelled else ""
        return line + (f"; {self.near} are near-duplicates and stay out of training" if self.near else "")


def feedback(workspace: Workspace, file: Path) -> Feedback:
    """Applies the file (CSV or Parquet: id or path, label, and optionally reason) to the selected data version.

    Cleaning no longer changes these photos; near-duplicates across the test split stay out of training. The same file again
    changes nothing.

    Raises:
        BadDelivery: a row cannot be used; the message names its number and field, and nothing was changed.
        UnknownVersion: there is no data version yet.
        LocalEdits: data/ was edited by hand.
    """
    check_file(file)
    return _save(workspace, lambda manifest: read_human_labels(file, manifest))


def feedback_labels(workspace: Workspace, labels: Mapping[str, HumanLabel]) -> tuple[Feedback, list[str]]:
    """Applies labels by photo id to the selected data version, as `feedback` does.

    Also returns the photos that could not be labelled: the version lacks them, or lacks a product of that name.

    Raises:
        UnknownVersion: there is no data version yet.
        LocalEdits: data/ was edited by hand.
    """
    left_out: list[str] = []

    def by_row(manifest: Manifest) -> dict[int, HumanLabel]:
        found = dict(zip(positions([*labels], manifest.id).tolist(), labels.items(), strict=True))
        products = frozenset(products_of(manifest))
        fits = {
            row: label
            for row, (_, label) in found.items()
            if row >= 0 and (label.label in products or label.label in ("", manifest.label[row]))
        }
        left_out.extend(sorted({*labels} - {str(manifest.id[row]) for row in fits}))
        return fits

    return _save(workspace, by_row), left_out


def save_decisions(workspace: Workspace, decisions: Decisions) -> tuple[Feedback, list[str]]:
    """Applies the decisions of the review that are not saved yet, and marks them as saved; photos that were skipped stay open.

    Also returns the photos that could not be labelled, as `feedback_labels` does.

    Raises:
        InputError: nothing was decided.
    """
    upto, _ = decisions.state()
    decided = [each for each in decisions.pending().values() if each.kind != SKIP]
    if not decided:
        raise InputError("there is nothing to save: no photo was decided since the last save")
    labels = {each.photo: HumanLabel(each.label, f"review by {each.who}") for each in decided}
    done, left_out = feedback_labels(workspace, labels)
    assert done.data_version is not None
    decisions.mark_saved(done.data_version, upto=upto, left_out=left_out)
    return done, left_out


def _save(workspace: Workspace, read: Callable[[Manifest], Mapping[int, HumanLabel]]) -> Feedback:
    """Makes a version of the selected one with the labels by row that `read` gives."""
    with workspace.lock("feedback", name=DATA_LOCK):
        versions = DataVersions(workspace)
        versions.repair()
        before = versions.materialise("selected")
        manifest = read_manifest(before)
        labels = read(manifest)
        after, done = apply(manifest, labels)
        config = digest(sorted([str(manifest.id[row]), each.label, each.reason] for row, each in labels.items()))
        folder = versions.new_folder()
        link_unchanged(before, folder, changed=OWN)
        write_labels(folder, after)
        write_version(folder, parent=before.name, step="feedback", config=config, code=code_hash())
        if read_table(folder, name="labels").equals(read_table(before, name="labels")):
            shutil.rmtree(folder)
            return dataclasses.replace(done, data_version=before.name)
        version = versions.commit(folder, step="feedback", message=done.in_words())
        done = dataclasses.replace(done, data_version=version)
        entry = versions.log()[0]
    post(workspace, selected("checked", entry))
    return done


def preview(workspace: Workspace, file: Path) -> Feedback:
    """Numbers of photos that `feedback` would change; nothing is changed."""
    check_file(file)
    manifest = read_manifest(DataVersions(workspace).materialise("selected"))
    return apply(manifest, read_human_labels(file, manifest))[1]


def apply(manifest: Manifest, labels: Mapping[int, HumanLabel]) -> tuple[Manifest, Feedback]:
    """The manifest with the labels by row applied, and the numbers of photos changed.

    A person settles a conflict of labels, but no label makes a near-duplicate fit for training. A photo without a label
    becomes a train photo, with the person's label as its given label.
    """
    changed = ("given_label", "label", "split", "kept", "decision", "score", "scored_by")
    columns = {name: getattr(manifest, name).copy() for name in changed}
    done = {"confirmed": 0, "relabelled": 0, "dropped": 0, "near": 0, "labelled": 0}
    for row, given in labels.items():
        is_near, is_first = manifest.decision[row] in NEAR, given.label and manifest.split[row] == UNLABELLED
        outcome = "dropped" if not given.label else "confirmed" if given.label == manifest.label[row] else "relabelled"
        done["near" if is_near else "labelled" if is_first else outcome] += 1
        if is_first:
            columns["given_label"][row], columns["split"][row] = given.label, "train"
        columns["label"][row] = given.label or manifest.label[row]
        columns["kept"][row] = bool(given.label) and not is_near
        columns["decision"][row] = manifest.decision[row] if is_near else CHECKED
        columns["score"][row] = np.nan
        columns["scored_by"][row] = f"{PERSON}: {given.reason}" if given.reason else PERSON
    return dataclasses.replace(manifest, **columns), Feedback(**done, data_version=None)


def check_file(file: Path) -> None:
    """Reads the first row only, so that a wrong path or column is reported before the data version is read.

    Raises:
        BadDelivery, OSError: the file cannot be read, or a column is missing or unknown.
    """
    next(read_records(file, required=REQUIRED, known=COLUMNS), None)


def read_human_labels(file: Path, manifest: Manifest) -> dict[int, HumanLabel]:
    """Labels in the file, by row of the manifest.

    Raises:
        BadDelivery: a row cannot be used; the message names its number and field.
    """
    paths = read_table(manifest.data, name="index")["path"].to_pylist()
    names = {"id": _rows_by_name(manifest.id.tolist()), "path": _rows_by_name(paths)}
    products = KnownLabels(products_of(manifest))
    labels: dict[int, HumanLabel] = {}
    read_at: dict[int, int] = {}  # number of the row of the file that gave each label
    for number, record in read_records(file, required=REQUIRED, known=COLUMNS):
        where = f"{file}: row {number}"
        row, reason = _row(where, record, names), text_in(where, record, "reason")
        label = _product(where, text_in(where, record, "label"), products)
        if row in labels and labels[row].label != label:
            former = f"row {read_at[row]}, {short(labels[row].label)}"
            raise BadDelivery(f"{where}, field label: {short(label)} contradicts {former}; keep one of the two")
        labels[row], read_at[row] = HumanLabel(label, " ".join(reason.split())), number
    if not labels:
        raise BadDelivery(f"{file} has no rows; give one per photo, with columns {', '.join(COLUMNS)}")
    return labels


def products_of(manifest: Manifest) -> list[str]:
    """Names that people may give: the classes, and all names under which photos in conflict were delivered.

    If a supplier renamed products, the new names are known from conflicts only.
    """
    claimed = pc.unique(read_table(manifest.data, name="conflicts")["label"]).to_pylist()
    return sorted({*manifest.classes, *claimed})


def _product(where: str, label: str, products: KnownLabels) -> str:
    """The product that the label means; "" if it is blank."""
    product = products.spelt(label)
    if product in products.labels or not label:
        return product
    if not product:
        raise BadDelivery(
            f"{where}, field label: {short(label)} shows nothing; leave it blank for none of the products, or correct it"
        )
    alike = products.alike(product)
    hint = f"; {short(alike)} is, and the two {difference(product, alike)}" if alike else ""
    raise BadDelivery(
        f"{where}, field label: {short(product)} is not a product of the selected data version{hint}; "
        "correct it, leave it blank for none of the products, or add new products with `cleanshelf ingest`"
    )


def _rows_by_name(names: list[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        found.setdefault(name, []).append(row)
    return found


def _row(where: str, record: Mapping[str, Any], names: Mapping[str, Mapping[str, list[int]]]) -> int:
    """Row of the one photo that the record names."""
    given = {name: text for name in names if (text := text_in(where, record, name))}
    if not given:
        raise BadDelivery(
            f"{where}, fields id and path: both are blank; give one, as in index.parquet of the data version"
        )
    for field, value in given.items():
        if value not in names[field]:
            raise BadDelivery(
                f"{where}, field {field}: {short(value)} is not a photo of the selected data version; see its index.parquet"
            )
    rows = set.intersection(*(set(names[field][value]) for field, value in given.items()))
    if not rows:
        raise BadDelivery(
            f"{where}, fields id and path: {' and '.join(map(short, given.values()))} are different photos; "
            "correct one, or leave it blank"
        )
    if len(rows) > 1:
        raise BadDelivery(f"{where}, field path: {short(given['path'])} names {len(rows)} photos; give its id")
    return rows.pop()
