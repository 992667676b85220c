"""Labels from people: the versions made from them, cleaning afterwards, and refusals."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.data.versions import DataVersions
from flows.delivery.build import build_version
from flows.errors import BadDelivery
from flows.feedback import HumanLabel, feedback, feedback_labels, preview
from flows.run.run import Run
from flows.steps.clean import decided
from flows.workspace import Workspace
from models.data.manifest import Manifest, count, read_manifest, read_table
from models.decisions import as_delivered
from models.evaluation.scores import Scores, write_scores
from models.recipe.config import load_recipe
from tests.deliveries import deliver, photo
from tests.packshots import encoded, packshot
from tests.versions import as_format_1

pytestmark = [
    pytest.mark.dvc,
]


@pytest.fixture
def shop(tmp_path: Path) -> Workspace:
    shop = Workspace.init(tmp_path / "shop")
    versions = DataVersions(shop)
    folder = versions.new_folder()
    build_version(deliver(tmp_path / "delivery", {"tea": 6, "milk": 6}), base=None, out=folder)
    versions.commit(folder, step="ingest", message="first")
    return shop


def selected(shop: Workspace) -> Manifest:
    return read_manifest(DataVersions(shop).materialise("selected"))


def write(path: Path, *rows: tuple[str, ...], columns: tuple[str, ...] = ("id", "label", "reason")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def other(label: str) -> str:
    return {"tea": "milk", "milk": "tea"}[label]


def test_labels_of_people_become_a_version(shop: Workspace, tmp_path: Path) -> None:
    before = selected(shop)
    moved, same, gone = (str(before.id[row]) for row in (0, 1, 2))
    file = write(
        tmp_path / "labels.csv",
        (moved, other(before.label[0]), "wrong  shelf"),
        (same, before.label[1], ""),
        (gone, "", "a hand"),
    )
    done = preview(shop, file)
    assert (done.confirmed, done.relabelled, done.dropped, done.data_version) == (1, 1, 1, None)
    assert len(DataVersions(shop).log()) == 1

    done = feedback(shop, file)
    entry = DataVersions(shop).log()[0]
    assert (entry.id, entry.step, entry.parent) == (done.data_version, "feedback", DataVersions(shop).log()[1].id)
    after = selected(shop)
    assert after.label[:3].tolist() == [other(before.label[0]), before.label[1], before.label[2]]
    assert after.kept[:3].tolist() == [True, True, False]
    assert after.decision.tolist() == ["checked"] * 3 + [""] * 9
    assert after.scored_by[:3].tolist() == ["person: wrong shelf", "person", "person: a hand"]
    assert after.given_label.tolist() == before.given_label.tolist()
    assert DataVersions(shop).verify("selected") == []

    again = feedback(shop, file)
    assert again.data_version == done.data_version
    assert len(DataVersions(shop).log()) == 2, "the same file again changes nothing"


def test_labels_by_photo_id_become_the_version_that_a_file_makes(shop: Workspace, tmp_path: Path) -> None:
    before = selected(shop)
    moved, same, gone, unknown = map(str, before.id[:4])
    labels = {moved: other(before.label[0]), same: before.label[1], gone: ""}
    rows = [(photo, label, "review by Ana") for photo, label in labels.items()]
    given = {photo: HumanLabel(label, "review by Ana") for photo, label in labels.items()}
    odd = {"0" * 16: HumanLabel("tea", ""), unknown: HumanLabel("rum", "")}
    done, left_out = feedback_labels(shop, given | odd)
    assert (done.confirmed, done.relabelled, done.dropped, left_out) == (1, 1, 1, sorted(odd))
    assert feedback(shop, write(tmp_path / "labels.csv", *rows)).data_version == done.data_version
    assert feedback_labels(shop, odd)[0].data_version == done.data_version, "nothing to change makes no version"


def test_a_version_of_format_1_is_changed_once(shop: Workspace, tmp_path: Path) -> None:
    versions = DataVersions(shop)
    folder = versions.new_folder()
    build_version(deliver(tmp_path / "former", {"tea": 6, "milk": 6}, first_seed=50), base=None, out=folder)
    as_format_1(folder)
    former = versions.commit(folder, step="ingest", message="by the former release")
    before = selected(shop)
    file = write(tmp_path / "labels.csv", (str(before.id[0]), "", "a hand"), (str(before.id[1]), before.label[1], ""))
    made = feedback(shop, file).data_version
    assert (versions.log()[0].parent, selected(shop).scored_by[:3].tolist()) == (
        former,
        ["person: a hand", "person", ""],
    )
    files = {path.name for path in versions.materialise("selected").glob("*.parquet")}
    assert "fingerprints.parquet" in files
    assert "looks.parquet" not in files
    assert versions.rollback(former).id == former

    folder = versions.new_folder()
    shutil.copytree(
        versions.materialise(made or ""), folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("READY")
    )
    as_format_1(folder)
    again = versions.commit(folder, step="feedback", message="by the former release")
    assert again != made
    assert feedback(shop, file).data_version == again, "the same file again changes nothing"
    assert versions.verify() == []


@pytest.fixture
def near(tmp_path: Path) -> Workspace:
    """A version with a copy of a test photo among its training photos, and a photo that came with two labels."""
    source = tmp_path / "near"
    for split, seed in (("train", 0), ("test", 50)):
        deliver(source / split, {"tea": 4, "milk": 4}, first_seed=seed)
    (source / "train" / "milk" / "claimed.png").write_bytes(photo(0))
    (source / "test" / "tea" / "shot.jpg").write_bytes(encoded(packshot("box", 0)))
    (source / "train" / "tea" / "copy.jpg").write_bytes(encoded(packshot("box", 0), quality=60))
    shop = Workspace.init(tmp_path / "shop-with-a-copy")
    versions = DataVersions(shop)
    build_version(source, base=None, out=(folder := versions.new_folder()))
    versions.commit(folder, step="ingest", message="first")
    return shop


def test_a_conflict_is_settled_and_a_near_duplicate_stays_out(near: Workspace, tmp_path: Path) -> None:
    before = selected(near)
    rows = {decision: int(np.flatnonzero(before.decision == decision)[0]) for decision in ("near-test", "conflict", "")}
    for label in ("milk", "tea", ""):
        file = write(tmp_path / "labels.csv", *((str(before.id[row]), label, "seen") for row in rows.values()))
        done = feedback(near, file)
        assert (done.near, done.confirmed + done.relabelled + done.dropped) == (1, 2)
        after = selected(near)
        assert [after.kept[row] for row in rows.values()] == [False, bool(label), bool(label)]
        assert [after.decision[row] for row in rows.values()] == ["near-test", "checked", "checked"]
        assert after.label[rows["near-test"]] == (label or "tea")
        counts = count(near.data)
        assert (counts["near"], counts["photos"]) == (1, counts["kept"] + counts["dropped"] + 1)
        assert DataVersions(near).log()[0].message.endswith("; 1 are near-duplicates and stay out of training")
        restored = as_delivered(after)
        for column in ("label", "kept", "decision", "scored_by"):
            assert getattr(restored, column).tolist() == getattr(after, column).tolist()
        assert feedback(near, file).data_version == done.data_version, "the same file again changes nothing"
    told = CliRunner().invoke(app, ["feedback", str(file), "--dry-run", "--workspace", str(near.root)])
    assert "1 are near-duplicates and stay out of training" in told.stdout


def test_a_near_duplicate_that_comes_with_another_label_stays_out(near: Workspace, tmp_path: Path) -> None:
    (tmp_path / "more" / "milk").mkdir(parents=True)
    (tmp_path / "more" / "milk" / "again.jpg").write_bytes(encoded(packshot("box", 0), quality=60))
    versions, before = DataVersions(near), selected(near)
    build_version(tmp_path / "more", base=versions.materialise("selected"), out=(folder := versions.new_folder()))
    versions.commit(folder, step="ingest", message="second")
    photo_id = str(before.id[before.decision == "near-test"][0])
    assert photo_id in read_table(near.data, name="conflicts")["id"].to_pylist()
    assert feedback(near, write(tmp_path / "labels.csv", (photo_id, "milk", ""))).near == 1
    assert not selected(near).kept[before.id == photo_id].any()


def test_labels_are_folded_as_in_a_delivery(shop: Workspace, tmp_path: Path) -> None:
    ids = selected(shop).id
    rows = [(str(ids[0]), " te\u00ada "), (str(ids[1]), "\ufeffmilk\u200b"), (str(ids[2]), " ")]
    done = preview(shop, write(tmp_path / "labels.csv", *rows, columns=("id", "label")))
    assert (done.confirmed + done.relabelled, done.dropped) == (2, 1)
    pq.write_table(pa.table({"id": ids[:1].astype(str), "label": [float("nan")]}), tmp_path / "labels.parquet")
    with pytest.raises(BadDelivery, match=r"row 1, field label: nan is missing \(NaN\); write it as text"):
        preview(shop, tmp_path / "labels.parquet")


def test_a_photo_may_be_named_by_its_path_in_a_parquet_file(shop: Workspace, tmp_path: Path) -> None:
    path = read_table(DataVersions(shop).materialise("selected"), name="index")["path"].to_pylist()[3]
    pq.write_table(pa.table({"path": [path], "label": ["tea"]}), tmp_path / "labels.parquet")
    feedback(shop, tmp_path / "labels.parquet")
    after = selected(shop)
    assert (after.label[3], after.decision[3], after.scored_by[3]) == ("tea", "checked", "person")


def test_cleaning_leaves_them_as_they_are(shop: Workspace, tmp_path: Path) -> None:
    """The networks contradict every given label, including those that a person confirmed."""
    before = selected(shop)
    train = np.flatnonzero(before.split == "train")
    rows = [(str(before.id[row]), str(before.label[row])) for row in train[:2]]
    feedback(shop, write(tmp_path / "labels.csv", *rows, columns=("id", "label")))
    manifest = selected(shop)
    target = manifest.given_target[train]
    top = np.stack([1 - target, target], axis=1)
    probs = np.tile(np.float32([0.99, 0.01]), (len(train), 1))
    folds = []
    for number in range(2):
        own = slice(number, None, 2)
        folds.append(tmp_path / f"fold-{number}")
        folds[-1].mkdir()
        scores = Scores(manifest.id[train][own].astype(str), target[own], probs[own, 1], top[own], probs[own])
        write_scores(scores, folds[-1] / "scores.parquet")
    recipe = load_recipe("smoke", overrides=["clean.floor_share=0", "clean.floor_count=1", "clean.rule=log_margin",
                                             "clean.params.threshold=0"])  # fmt: skip
    after, _ = decided(Run(shop, recipe, id="x"), manifest, folds, 1)
    assert after.decision[train][:2].tolist() == ["checked"] * 2
    assert after.kept[train][:2].all()
    assert (after.decision[train][2:] == "dropped").sum() >= 4, "all but the floor of each class"


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        (
            ("id", "label"),
            [("{0}", "tea"), ("{1}", "tae")],
            "row 2, field label: 'tae' is not a product of the selected",
        ),
        (
            ("id", "label"),
            [("0000000000000000", "tea")],
            "row 1, field id: '0000000000000000' is not a photo of the selected",
        ),
        (
            ("id", "path", "label"),
            [("{0}", "{path0}", "tea"), ("{0}", "{path1}", "tea")],
            "row 2, fields id and path: '",
        ),
        (("id", "path", "label"), [("{0}", "{path1}", "tea")], "are different photos; correct one, or leave it blank"),
        (("id", "path", "label"), [("{0}", "none.png", "tea")], "row 1, field path: 'none.png' is not a photo of the"),
        (("id", "path", "label"), [("0123", "{path0}", "tea")], "row 1, field id: '0123' is not a photo of the"),
        (("id", "label"), [("{0}", "x" * 100_000)], "row 1, field label: '" + "x" * 56 + "... is not a product"),
        (("path", "label"), [("x" * 100_000, "tea")], "row 1, field path: '" + "x" * 56 + "... is not a photo"),
        (("path", "label"), [("tea/photo.png", "tea")], "row 1, field path: 'tea/photo.png' is not a photo"),
        (("id", "path", "label"), [("", " ", "tea")], "row 1, fields id and path: both are blank"),
        (("id", "label"), [("{0}", "tea"), ("{0}", "milk")], "row 2, field label: 'milk' contradicts row 1, 'tea'"),
        (("id",), [("{0}",)], "column 'label' is missing; it has id"),
        (("id", "label", "why"), [("{0}", "tea", "")], "unknown column 'why'; known are id, path, label, reason"),
        (
            ("id", "label"),
            [("{0}", "Tea")],
            "row 1, field label: 'Tea' is not a product of the selected data version; "
            "'tea' is, and the two differ only in case or white space; correct it",
        ),
        (("id", "label"), [("{0}", "\u200b")], r"row 1, field label: '\u200b' shows nothing; leave it blank for none"),
        (("id", "label"), [("{0}", "ta\u0301")], "row 1, field label: 'tá' is not a product"),
        (
            ("id", "label", "label"),
            [("{0}", "tea", "milk")],
            "column 'label' occurs 2 times ('label', 'label'); keep one",
        ),
        (("id", "label"), [], "has no rows; give one per photo, with columns id, path, label, reason"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_and_nothing_changes(
    shop: Workspace, tmp_path: Path, columns: tuple[str, ...], rows: list[tuple[str, ...]], message: str
) -> None:
    index = read_table(DataVersions(shop).materialise("selected"), name="index").to_pydict()
    ids, paths = index["id"], {f"path{number}": path for number, path in enumerate(index["path"])}
    cells = ([cell.format(*ids, **paths) for cell in row] for row in rows)
    file = write(tmp_path / "labels.csv", *cells, columns=columns)
    with pytest.raises(BadDelivery) as refused:
        feedback(shop, file)
    assert str(refused.value).startswith(str(file))
    assert message in str(refused.value)
    assert [entry.step for entry in DataVersions(shop).log()] == ["ingest"]
