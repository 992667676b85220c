"""Label issues go to other tools and come back as decisions; what cannot be used is refused before anything is written."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.data.versions import DataVersions
from flows.errors import BadDelivery, Decided, InputError
from flows.exchange.export import Wanted, export
from flows.exchange.formats import FORMATS
from flows.exchange.incoming import TakenIn, take_in
from flows.exchange.suspects import NO_PRODUCT
from flows.review.decisions import KEEP, NONE, RELABEL, SKIP, Decision, Decisions
from flows.review.photos import Photos, read_photos
from flows.workspace import Workspace
from models.data.manifest import FLAGGED
from tests.cleaned import CLASSES, cleaned_workspace

MARKUP, SALT = CLASSES[3], CLASSES[5]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return cleaned_workspace(tmp_path_factory.mktemp("exchange"), photos=8, every=1)


@pytest.fixture(scope="module")
def photos(shop: Workspace) -> Photos:
    version = DataVersions(shop).resolve("selected")
    return read_photos(DataVersions(shop).materialise(version), version=version)


@pytest.fixture
def state(shop: Workspace) -> Decisions:
    """The decisions of the workspace, of which there are none."""
    decisions = Decisions(shop.state)
    decisions.forget([*decisions.pending()])
    return decisions


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def out(shop: Workspace, folder: Path, format: str, **wanted: Any) -> Path:
    export(shop, folder / format, format, wanted=Wanted(**wanted))
    return folder / format


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_has_the_worst_photos_as_pictures(
    shop: Workspace, photos: Photos, tmp_path: Path, format: str
) -> None:
    folder = out(shop, tmp_path, format, limit=5)
    flagged = np.flatnonzero(photos.decision.is_one_of(FLAGGED))
    worst = flagged[np.argsort(photos.score[flagged])][:5]

    assert {path.stem for path in (folder / "photos").iterdir()} == {photos.name(row) for row in worst}
    with Image.open(folder / "photos" / f"{photos.name(worst[0])}.jpg") as picture:
        assert (picture.format, picture.size) == ("JPEG", (48, 48))
    assert [path.name for path in tmp_path.iterdir()] == [format], "nothing is left beside it"


def test_an_export_can_be_limited_to_a_label(shop: Workspace, photos: Photos, tmp_path: Path) -> None:
    rows = rows_of(out(shop, tmp_path, "csv", given=MARKUP) / "suspects.csv")
    flagged = photos.decision.is_one_of(FLAGGED) & (photos.given.codes == photos.given.code(MARKUP))

    assert len(rows) == flagged.sum() > 0
    assert {row["given_label"] for row in rows} == {MARKUP}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"given": "Nope"}, "--given 'Nope': data version .* has no such product"),
        ({"suggestion": "Nope"}, "--suggested 'Nope'"),
    ],
)
def test_an_export_of_an_unknown_product_is_refused(
    shop: Workspace, tmp_path: Path, wanted: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        out(shop, tmp_path, "csv", **wanted)
    assert list(tmp_path.iterdir()) == []


def test_an_export_overwrites_nothing(shop: Workspace, tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    with pytest.raises(InputError, match="exists; name a new folder"):
        out(shop, tmp_path, "csv")
    with pytest.raises(InputError, match="choose one of csv, labelstudio, fiftyone, lightly"):
        out(shop, tmp_path, "excel")


def test_the_contact_sheet_shows_names_and_never_runs_them(shop: Workspace, tmp_path: Path) -> None:
    page = (out(shop, tmp_path, "csv") / "index.html").read_text(encoding="utf-8")
    assert "Cora &lt;i onload=alert(1)&gt;" in page
    assert "<i onload" not in page
    assert "http" not in page, "it needs no network"


# What a person does in each tool with the first four photos: keep, another label, not a product, nothing.


def filled_csv(folder: Path) -> Path:
    rows = rows_of(folder / "suspects.csv")
    rows[0]["decision"], rows[1]["label"], rows[2]["decision"] = "Keep", SALT, "none"
    return table(folder / "filled.csv", rows)


def done_in_label_studio(folder: Path) -> Path:
    tasks = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    answers = [
        [answer("product", choices=[tasks[0]["data"]["given"]])],
        [answer("product", choices=[tasks[1]["data"]["given"]]), answer("other", text=[SALT])],
        [answer("product", choices=[NO_PRODUCT])],
    ]
    for number, task in enumerate(tasks):
        late = {
            "result": answers[number] if number < 3 else [],
            "updated_at": "2026-02-01",
            "was_cancelled": number >= 3,
        }
        early = {"result": [answer("product", choices=["Nope"])], "updated_at": "2026-01-01", "was_cancelled": False}
        task["annotations"] = [early, late | {"completed_by": {"email": "ana@shop"}}] if number < 3 else [late]
    return document(folder / "project-1.json", tasks)


def answer(name: str, **value: list[str]) -> dict[str, Any]:
    return {"from_name": name, "to_name": "photo", "type": next(iter(value)), "value": value}


def done_in_fiftyone(folder: Path) -> Path:
    samples = json.loads((folder / "samples.json").read_text(encoding="utf-8"))["samples"]
    samples[0]["tags"] = ["keep", "seen"]
    samples[1]["decision"] = {"_cls": "Classification", "label": SALT}
    samples[2]["tags"] = ["none"]
    document(folder / "samples.json", {"samples": samples})
    return folder


def done_in_lightly(folder: Path) -> Path:
    suspects = json.loads((folder / "suspects.json").read_text(encoding="utf-8"))
    rows = [line(folder, each, each["given"], "given label") for each in suspects]
    rows += [line(folder, each, each["suggested"], "suggestion") for each in suspects if each["suggested"]]
    labels = (suspects[0]["given"], SALT, NO_PRODUCT)
    rows += [line(folder, each, label, "Ana") for each, label in zip(suspects, labels, strict=False)]
    return table(folder / "classifications.csv", rows)


def line(folder: Path, suspect: dict[str, Any], label: str, source: str) -> dict[str, str]:
    path = str(folder / suspect["file"])
    return {"file_path_abs": path, "class_name": label, "confidence": "", "annotation_source": source}


def table(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    return path


def document(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


DONE: dict[str, Callable[[Path], Path]] = {
    "csv": filled_csv,
    "labelstudio": done_in_label_studio,
    "fiftyone": done_in_fiftyone,
    "lightly": done_in_lightly,
}


@pytest.mark.parametrize("format", FORMATS)
def test_decisions_come_back_once(
    shop: Workspace, photos: Photos, state: Decisions, tmp_path: Path, format: str
) -> None:
    file = DONE[format](out(shop, tmp_path, format, given=CLASSES[0]))
    flagged = np.flatnonzero(photos.decision.is_one_of(FLAGGED) & (photos.given.codes == photos.given.code(CLASSES[0])))
    worst = [photos.name(row) for row in flagged[np.argsort(photos.score[flagged], kind="stable")]]
    expected = {worst[0]: (KEEP, CLASSES[0]), worst[1]: (RELABEL, SALT)} | {worst[2]: (NONE, "")}

    assert take_in(shop, file, who="Ben", dry_run=True) == TakenIn(photos.version, 1, 1, 1, 0, 0)
    assert state.pending() == {}
    assert take_in(shop, file, who="Ben") == TakenIn(photos.version, 1, 1, 1, 0, 0)
    made = state.pending()
    assert {photo: (each.kind, each.label) for photo, each in made.items()} == expected
    assert {(each.who, each.version) for each in made.values()} == {
        ("ana@shop" if format == "labelstudio" else "Ben", photos.version)
    }
    assert take_in(shop, file, who="Ben") == TakenIn(photos.version, 0, 0, 0, 0, 3)
    assert state.pending() == made


def test_a_changed_given_label_is_a_decision(shop: Workspace, state: Decisions, tmp_path: Path) -> None:
    folder = out(shop, tmp_path, "fiftyone", limit=2)
    samples = json.loads((folder / "samples.json").read_text(encoding="utf-8"))["samples"]
    samples[0]["given"]["label"] = next(label for label in CLASSES if label != samples[0]["given"]["label"])
    document(folder / "samples.json", {"samples": samples})

    assert take_in(shop, folder, who="Ben").relabelled == 1
    assert [each.photo for each in state.pending().values()] == [samples[0]["photo"]]


def test_a_suggestion_is_taken_by_its_name(shop: Workspace, state: Decisions, tmp_path: Path) -> None:
    rows = rows_of(out(shop, tmp_path, "csv") / "suspects.csv")
    row = next(row for row in rows if row["suggested_label"])
    take_in(shop, table(tmp_path / "take.csv", [row | {"decision": "take"}]), who="Ben")

    [made] = state.pending().values()
    assert (made.photo, made.kind, made.label) == (row["id"], RELABEL, row["suggested_label"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "0" * 16, "label": SALT}, "row 2, field id: '0000000000000000' is not a photo of data version"),
        ({"id": "../x", "label": SALT}, "row 2, field id: '../x' is not a photo"),
        ({"id": "", "label": SALT}, "row 2, field id: it is blank"),
        ({"label": "Nope"}, "row 2, field label: 'Nope' is not a product of data version"),
        ({"label": SALT.upper()}, "differ only in case"),
        ({"decision": "yes"}, "row 2, field decision: 'yes' is unknown; use one of keep, take"),
        ({"decision": "keep", "label": SALT}, "contradict each other"),
        ({"decision": "take"}, "there is no suggestion to take"),
        ({"decision": "relabel"}, "row 2, field label: it is blank"),
    ],
)
def test_a_row_that_cannot_be_used_writes_nothing(
    shop: Workspace, photos: Photos, state: Decisions, tmp_path: Path, row: dict[str, str], message: str
) -> None:
    good = {"id": photos.name(0), "decision": "none", "label": ""}
    file = table(tmp_path / "bad.csv", [good, good | {"id": photos.name(1), "decision": ""} | row])

    with pytest.raises(BadDelivery, match=message):
        take_in(shop, file, who="Ben")
    assert state.pending() == {}


def test_two_rows_may_agree_and_not_contradict(
    shop: Workspace, photos: Photos, state: Decisions, tmp_path: Path
) -> None:
    row = {"id": photos.name(0), "decision": "none", "label": ""}
    assert take_in(shop, table(tmp_path / "same.csv", [row, row]), who="Ben", dry_run=True).none == 1
    with pytest.raises(BadDelivery, match=r"row 2: 'keep' contradicts|row 2: .* contradicts 'none' of .*row 1"):
        take_in(shop, table(tmp_path / "two.csv", [row, row | {"decision": "keep"}]), who="Ben")


@pytest.mark.parametrize("dry_run", [True, False])
def test_the_decision_of_another_person_is_not_overwritten(
    shop: Workspace, photos: Photos, state: Decisions, tmp_path: Path, dry_run: bool
) -> None:
    theirs = Decision(photos.name(0), RELABEL, SALT, "Ana", photos.version)
    state.add([theirs, Decision(photos.name(1), SKIP, "", "Ben", photos.version)])
    file = table(tmp_path / "mine.csv", [{"id": photos.name(0), "decision": "none"}])

    with pytest.raises(Decided, match=f"Ana has decided about photo {photos.name(0)}"):
        take_in(shop, file, who="Ben", dry_run=dry_run)
    agreed = table(tmp_path / "agreed.csv", [{"id": photos.name(0), "label": SALT}])
    assert take_in(shop, agreed, who="Ben", dry_run=dry_run).unchanged == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("export.json", "[{}]", "export the project of Label Studio as JSON"),
        ("export.json", "{", "not a file that labelstudio exports"),
        ("samples.json", "[]", "not a file that fiftyone exports"),
        ("samples.json", '{"samples": [{"photo": 1}]}', "sample 1, field photo: 1 is not the id of a photo"),
        ("empty.csv", "id,label\n", "has no decisions"),
        ("other.csv", "path,label\nx,y\n", "id"),
        ("missing.csv", None, "no such file"),
    ],
)
def test_a_file_of_another_kind_is_refused_in_words(
    shop: Workspace, tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(BadDelivery, match=message):
        take_in(shop, tmp_path / name, who="Ben")


def test_label_studio_offers_few_products_per_task(shop: Workspace, tmp_path: Path) -> None:
    tasks = json.loads((out(shop, tmp_path, "labelstudio") / "tasks.json").read_text(encoding="utf-8"))
    predicted = [task for task in tasks if task["data"]["suggested"]]
    assert {round(task["predictions"][0]["score"], 1) for task in predicted} == {0.7}, "what the fold says"
    offered = [[choice["value"] for choice in task["data"]["choices"]] for task in predicted]
    assert offered == [[task["data"]["given"], task["data"]["suggested"], NO_PRODUCT] for task in predicted]
    assert [task["predictions"][0]["result"][0]["value"]["choices"] for task in predicted] == [
        [task["data"]["suggested"]] for task in predicted
    ]


def test_a_version_that_no_fold_scored_is_exported_without_suggestions(tmp_path: Path) -> None:
    workspace = cleaned_workspace(tmp_path, photos=5, every=1)
    shutil.rmtree(workspace.runs / "stages")
    rows = rows_of(out(workspace, tmp_path, "csv") / "suspects.csv")
    named = [row for row in rows if row["suggested_label"]]

    assert rows
    assert {row["probability"] for row in rows} == {""}
    assert 0 < len(named) < len(rows), "cleaning relabelled some"
