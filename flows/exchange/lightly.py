"""LightlyStudio: a script that loads the photos with their labels, and its export of classifications as CSV.

Decisions are classifications of another annotation source than those that the script wrote, or a changed given label.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from flows.delivery.rows import read_records, text_in
from flows.errors import BadDelivery
from flows.exchange.choice import EDITED, Choice, with_none
from flows.exchange.suspects import Suspect
from flows.review.decisions import RELABEL
from models.data.records import short

TABLE, SCRIPT = "suspects.json", "load.py"
GIVEN, SUGGESTED = "given label", "suggestion"  # annotation sources
COLUMNS = ("file_path_abs", "class_name", "confidence", "annotation_source")
LOADING = '''\
"""Loads labels in doubt into LightlyStudio and opens it: python load.py"""

import json
from pathlib import Path

import lightly_studio as ls
from lightly_studio.core.annotation import CreateClassification

HERE = Path(__file__).resolve().parent
suspects = {str(HERE / each["file"]): each for each in json.loads((HERE / "suspects.json").read_text("utf-8"))}
dataset = ls.ImageDataset.load_or_create(name=HERE.name)
dataset.add_images_from_path(path=str(HERE / "photos"), embed=False)
for sample in dataset:
    each = suspects[sample.file_path_abs]
    if sample.metadata["photo"]:
        continue  # loaded before
    for name in ("photo", "score", "split", "source", "version"):
        sample.metadata[name] = each[name]
    sample.add_annotation(CreateClassification(class_name=each["given"]), annotation_source="given label")
    if each["suggested"]:
        suggestion = CreateClassification(class_name=each["suggested"], confidence=each["probability"])
        sample.add_annotation(suggestion, annotation_source="suggestion")
if __name__ == "__main__":
    ls.start_gui()
'''


def write(folder: Path, suspects: Sequence[Suspect]) -> None:
    """Writes load.py and the table that it reads."""
    rows = [vars(suspect) | {"file": suspect.file} for suspect in suspects]
    (folder / TABLE).write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    (folder / SCRIPT).write_text(LOADING, encoding="utf-8")


def read(file: Path) -> Iterator[Choice]:
    """Choices of LightlyStudio's export "Classification CSV"; the names of the photos' files are their ids.

    Raises:
        BadDelivery: the table cannot be read, or a photo has several labels.
    """
    chosen: dict[str, Choice] = {}
    for number, record in read_records(file, required=COLUMNS, known=COLUMNS):
        where = f"{file}: row {number}"
        path, label, _, source = (text_in(where, record, column) for column in COLUMNS)
        if source == SUGGESTED:
            continue
        choice = Choice(where, PurePosixPath(path).stem, EDITED if source == GIVEN else RELABEL, label)
        before = chosen.setdefault(choice.photo, choice)
        if before.kind == choice.kind and before.label != label:
            raise BadDelivery(
                f"{where}, field class_name: {short(label)} contradicts {short(before.label)} of {before.where}; keep one"
            )
        if before.kind == EDITED:
            chosen[choice.photo] = choice
    yield from (with_none(choice) for choice in chosen.values())
