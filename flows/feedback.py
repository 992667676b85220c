"""Labels from people become a data version: what users reported, or what was decided on a review page.

A plain function and not a flow: somebody waits for the answer.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flows.data.derive import link_unchanged
from flows.data.versions import DataVersions
from flows.delivery.rows import read_records
from flows.errors import BadDelivery
from flows.orchestrator.events import post, selected
from flows.run.run import code_hash
from flows.workspace import Workspace
from models.data.manifest import CHECKED, Manifest, read_manifest, read_table, write_labels, write_version
from models.recipe.config import digest

COLUMNS = ("id", "path", "label", "reason")
OWN = ("labels.parquet", "VERSION.json")  # the files that change; the others are linked


@dataclass(frozen=True)
class HumanLabel:
    """What a person said of a photo; label "": it shows none of the products."""

    label: str
    reason: str


@dataclass(frozen=True)
class Feedback:
    """Numbers of photos, and the data version that came of them; None of a preview.

    confirmed: the label it had; relabelled: another one; dropped: none of the products.
    """

    confirmed: int
    relabelled: int
    dropped: int
    data_version: str | None = None


def feedback(workspace: Workspace, file: Path) -> Feedback:
    """Applies the file (CSV or Parquet: id or path, label, and if wanted reason) to the selected data version.

    Cleaning leaves these photos as they are from now on. The same file again changes nothing.

    Raises:
        BadDelivery: a row that cannot be used, with its number and field; nothing was changed.
        UnknownVersion: there is no data version yet.
        LocalEdits: data/ was edited by hand.
    """
    with workspace.lock("feedback"):
        versions = DataVersions(workspace)
        versions.repair()
        before = versions.materialise("selected")
        words = read_words(file, before)
        manifest = read_manifest(before)
        after, done = apply(manifest, words)
        config = digest(sorted([str(manifest.id[row]), word.label, word.reason] for row, word in words.items()))
        folder = versions.new_folder()
        link_unchanged(before, folder, changed=OWN)
        write_labels(folder, after)
        write_version(folder, parent=before.name, step="feedback", config=config, code=code_hash())
        if read_table(folder, name="labels").equals(read_table(before, name="labels")):
            shutil.rmtree(folder)
            return dataclasses.replace(done, data_version=before.name)
        message = (
            f"{done.confirmed} labels confirmed, {done.relabelled} changed, {done.dropped} photos dropped by people"
        )
        done = dataclasses.replace(done, data_version=versions.commit(folder, step="feedback", message=message))
        entry = versions.log()[0]
    post(workspace, selected("checked", entry))
    return done


def preview(workspace: Workspace, file: Path) -> Feedback:
    """What `feedback` would do; nothing is changed."""
    data = DataVersions(workspace).materialise("selected")
    return apply(read_manifest(data), read_words(file, data))[1]


def apply(manifest: Manifest, words: Mapping[int, HumanLabel]) -> tuple[Manifest, Feedback]:
    """The manifest as people say, and what that changed."""
    columns = {name: getattr(manifest, name).copy() for name in ("label", "kept", "decision", "score", "scored_by")}
    done = {"confirmed": 0, "relabelled": 0, "dropped": 0}
    for row, word in words.items():
        outcome = "dropped" if not word.label else "confirmed" if word.label == manifest.label[row] else "relabelled"
        done[outcome] += 1
        columns["label"][row] = word.label or manifest.label[row]
        columns["kept"][row] = bool(word.label)
        columns["decision"][row] = CHECKED
        columns["score"][row] = np.nan
        columns["scored_by"][row] = f"person: {word.reason}" if word.reason else "person"
    return dataclasses.replace(manifest, **columns), Feedback(done["confirmed"], done["relabelled"], done["dropped"])


def read_words(file: Path, data: Path) -> dict[int, HumanLabel]:
    """By row of the manifest of the data version in folder `data`.

    Raises:
        BadDelivery: naming row and field.
    """
    manifest = read_manifest(data)
    names = {"id": _places(manifest.id.tolist()), "path": _places(read_table(data, name="index")["path"].to_pylist())}
    labels = set(manifest.classes)
    words: dict[int, HumanLabel] = {}
    told: dict[int, int] = {}
    for number, record in read_records(file, required=("label",), known=COLUMNS):
        row = _row(f"{file}: row {number}", record, names)
        label = " ".join(record["label"].split())
        if label and label not in labels:
            raise BadDelivery(
                f"{file}: row {number}, field label: {label!r} is no product of the selected data version; "
                "write one that is, leave it blank for none of them, or bring new products with `cleanshelf ingest`"
            )
        if row in words and words[row].label != label:
            raise BadDelivery(f"{file}: row {number}, field label: {label!r} contradicts row {told[row]}, {words[row].label!r}; "
                              "keep one of them")  # fmt: skip
        words[row], told[row] = HumanLabel(label, " ".join(record.get("reason", "").split())), number
    if not words:
        raise BadDelivery(f"{file} has no rows; give one per photo, with columns {', '.join(COLUMNS)}")
    return words


def _places(names: list[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        found.setdefault(name, []).append(row)
    return found


def _row(where: str, record: Mapping[str, str], names: Mapping[str, Mapping[str, list[int]]]) -> int:
    """The one photo that the record means."""
    field = next((name for name in names if record.get(name, "").strip()), None)
    if field is None:
        raise BadDelivery(
            f"{where}, fields id and path: both are blank; give one, as in index.parquet of the data version"
        )
    value = record[field].strip()
    rows = names[field].get(value, [])
    if len(rows) != 1:
        what = (
            f"names {len(rows)} photos; give its id"
            if rows
            else "is no photo of the selected data version; see its index.parquet"
        )
        raise BadDelivery(f"{where}, field {field}: {value!r} {what}")
    return rows[0]
