"""Contents of data versions: classes by split, lists of photos, and changes between versions, whose sums all hold."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from flows.cli import app
from flows.data import contents
from flows.data.diff import CHANGES, as_table, compare_labels
from flows.data.near import NAME
from flows.data.versions import DataVersions
from flows.delivery.build import build_version
from flows.feedback import feedback
from flows.report.contents import print_classes, print_diff, print_listing
from flows.workspace import Workspace
from models.data.manifest import (
    DECISIONS,
    LABELS,
    LEFT_OUT,
    SPLITS,
    class_counts,
    count_tables,
    read_table,
    write_table,
)
from models.data.records import read_rows
from tests.deliveries import deliver, photo
from tests.packshots import encoded, packshot

PHOTO = st.tuples(
    st.sampled_from("ab"), st.sampled_from("abc"), st.sampled_from(SPLITS), st.booleans(), st.sampled_from(DECISIONS)
)
COLUMNS = ("given_label", "label", "split", "kept", "decision")


def write(folder: Path, photos: dict[int, tuple[Any, ...]]) -> Path:
    """A labels.parquet of photos by number: given label, label, split, kept, decision."""
    folder.mkdir(exist_ok=True)
    rows = [photos[number] for number in sorted(photos)]
    columns = {name: [row[at] for row in rows] for at, name in enumerate(COLUMNS)}
    ids = [f"{number:016x}" for number in sorted(photos)]
    rest = {"id": ids, "score": [None] * len(ids), "round": [0] * len(ids), "scored_by": [""] * len(ids)}
    write_table(folder, columns | rest, name="labels")
    return folder / "labels.parquet"


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(st.integers(0, 30), PHOTO, max_size=20), st.dictionaries(st.integers(0, 30), PHOTO, max_size=20))
def test_each_photo_of_two_versions_counts_once(before: dict[int, Any], after: dict[int, Any]) -> None:
    with tempfile.TemporaryDirectory() as place:
        old, new = (write(Path(place) / name, photos) for name, photos in (("a", before), ("b", after)))
        diff, back = compare_labels(old, new), compare_labels(new, old)
        totals = {change: getattr(diff, change) for change in CHANGES}
        assert sum(totals.values()) + diff.unchanged == len(before.keys() | after.keys())
        assert diff.unchanged == back.unchanged
        assert diff.added == len(after.keys() - before.keys())
        assert sum(each.photos for each in diff.changes) == sum(totals.values())
        assert all(len(each.ids) == each.photos for each in diff.changes)
        per_class = sum((Counter(counts) for counts in diff.per_class.values()), Counter())
        assert per_class == Counter(totals)
        assert len(set(as_table(diff)["id"].to_pylist())) == len(as_table(diff)) == sum(totals.values())
        classes = class_counts(read_table(new.parent, name="labels"))
        assert sum(classes["photos"].to_pylist()) == len(after)
        for row in classes.to_pylist():
            assert row["photos"] == row["train"] + row["val"] + row["test"] + row["left_out"]


@pytest.mark.parametrize(
    ("before", "after", "change", "states"),
    [
        (None, ("a", "a", True, ""), "added", ("", "absent", "a", "unchanged")),
        (("a", "a", True, ""), ("a", "a", True, "doubted"), "decided", ("a", "unchanged", "a", "doubted")),
        (("a", "a", True, "doubted"), ("a", "a", True, ""), "decided", ("a", "doubted", "a", "unchanged")),
        (("a", "a", True, ""), ("a", "a", True, "checked"), "decided", ("a", "unchanged", "a", "confirmed")),
        (("a", "a", True, ""), ("a", "b", True, "relabelled"), "relabelled", ("a", "unchanged", "b", "relabelled")),
        (("a", "a", True, ""), ("a", "a", False, "checked"), "dropped", ("a", "unchanged", "a", "dropped")),
        (("a", "a", True, ""), ("a", "a", False, "conflict"), "dropped", ("a", "unchanged", "a", "conflicts")),
        (("a", "a", False, "near-test"), ("a", "a", True, "checked"), "restored", ("a", "near", "a", "confirmed")),
        (("a", "a", False, "dropped"), ("a", "a", False, "conflict"), "decided", ("a", "dropped", "a", "conflicts")),
        (("a", "a", True, ""), None, "dropped", ("a", "unchanged", "", "absent")),
        (("a", "a", False, "dropped"), None, "decided", ("a", "dropped", "", "absent")),
    ],
)
def test_a_change_says_from_what_to_what(
    tmp_path: Path, before: tuple[Any, ...] | None, after: tuple[Any, ...] | None, change: str, states: tuple[str, ...]
) -> None:
    old, new = (
        write(tmp_path / name, {7: (*photo[:2], "train", *photo[2:])} if photo else {})
        for name, photo in (("a", before), ("b", after))
    )
    diff = compare_labels(old, new)
    [found] = diff.changes
    assert (found.change, found.photos, found.ids) == (change, 1, [f"{7:016x}"])
    assert (found.from_label, found.from_outcome, found.to_label, found.to_outcome) == states
    assert diff.per_class == {"a" if states[2] != "b" else "b": {name: int(name == change) for name in CHANGES}}


def test_many_photos_and_classes_are_compared_and_counted_without_a_loop_over_them(tmp_path: Path) -> None:
    number = 50_030
    old = write(tmp_path / "a", {n: (f"{n}", f"{n}", "train", True, "") for n in range(number)})
    new = write(tmp_path / "b", {n: (f"{n}", f"{n}", "train", True, "doubted" if n % 2 else "") for n in range(number)})
    diff = compare_labels(old, new)
    assert (diff.decided, diff.unchanged, len(diff.changes)) == (number // 2, number // 2, number // 2)
    assert len(class_counts(read_table(tmp_path / "b", name="labels"))) == number


def table(number: int) -> pa.Table:
    numbers = list(range(number))
    columns = {"train": numbers, "val": [0] * number, "test": [1] * number, "left_out": [0] * number}
    return pa.table({"class": [f"c{n:05}" for n in numbers], **columns, "photos": [n + 1 for n in numbers]})


def test_classes_are_printed_in_full_if_few_and_by_size_if_many(capsys: pytest.CaptureFixture[str]) -> None:
    print_classes(table(3))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["class", "c00002", "c00001", "c00000", "all"]
    assert lines[4].split() == ["all", "3", "3", "0", "3", "0", "6"]
    assert lines[5:] == ["classes without a train photo: 1, such as 'c00000'",
                         "classes without a val photo: 3, such as 'c00000', 'c00001', 'c00002'"]  # fmt: skip
    print_classes(table(5000))
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) < 30
    assert all(text in printed for text in ("c04999", "c00000", "... 4980 more", "all 5000", "12502500"))
    assert "classes without a val photo: 5000" in printed
    assert "--out FILE or --json has all" in printed


def test_long_lists_are_cut_and_short_ones_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    print_listing(table(100), photos="classes")
    printed = capsys.readouterr().out
    assert (printed.count("\n"), "c00019" in printed, "c00020" in printed) == (22, True, False)
    assert printed.endswith("100 classes; --out FILE or --json has all\n")
    print_listing(table(0), photos="conflicts")
    assert capsys.readouterr().out == "no conflicts\n"


def test_a_diff_prints_numbers_and_the_first_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = write(tmp_path / "a", {n: ("tea", "tea", "train", True, "") for n in range(5)})
    new = write(tmp_path / "b", {n: ("tea", "tea", "train", True, "doubted") for n in range(5)})
    print_diff(compare_labels(old, new), CHANGES)
    printed = capsys.readouterr().out
    assert printed.startswith("photos: 0 added, 0 dropped, 0 restored, 0 relabelled, 5 decided, 0 unchanged\n")
    assert "tea (unchanged)  tea (doubted)  5" in printed
    assert f"{0:016x} {1:016x} {2:016x} ..." in printed
    print_diff(compare_labels(old, old), CHANGES)
    assert capsys.readouterr().out.splitlines() == [
        "photos: 0 added, 0 dropped, 0 restored, 0 relabelled, 0 decided, 5 unchanged"
    ]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A version with a near-duplicate, a conflict and a refused row; then people drop, relabel and confirm a photo each."""
    place = tmp_path_factory.mktemp("shop")
    source = place / "s"
    for split in ("train", "test"):
        deliver(source / split, {"tea": 4, "milk": 4}, first_seed=0 if split == "train" else 50)
    (source / "train" / "milk" / "claimed.png").write_bytes(photo(0))
    (source / "train" / "milk" / "broken.png").write_bytes(b"no photo")
    (source / "test" / "tea" / "shot.jpg").write_bytes(encoded(packshot("box", 0)))
    (source / "train" / "tea" / "copy.jpg").write_bytes(encoded(packshot("box", 0), quality=60))
    shop = Workspace.init(place / "shop")
    versions = DataVersions(shop)
    folder = versions.new_folder()
    build_version(source, base=None, out=folder)
    versions.commit(folder, step="ingest", message="first")
    labels = read_table(shop.data, name="labels").to_pylist()
    gone, moved, same = (row for row in labels if row["kept"] and row["label"] == "tea" and row["split"] == "train")
    file = place / "people.csv"
    file.write_text(f"id,label\n{gone['id']},\n{moved['id']},milk\n{same['id']},tea\n")
    feedback(shop, file)
    return shop


def run(shop: Workspace, *arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments, "--workspace", str(shop.root)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.dvc
def test_counts_of_the_log_and_of_a_version_add_up_after_labels_of_people(shop: Workspace) -> None:
    for entry in json.loads(run(shop, "data", "log", "--json")):
        counts = json.loads(run(shop, "data", "show", entry["id"], "--json"))["counts"]
        assert counts == entry["counts"]
        assert counts["photos"] == 18 == counts["kept"] + sum(counts[name] for name in LEFT_OUT)
        assert counts["kept"] == sum(counts[split] for split in SPLITS)
        assert (counts["conflicts"], counts["near"], counts["quarantined"]) == (1, 1, 1)
    assert (entry["counts"]["dropped"], entry["counts"]["relabelled"]) == (0, 0), "the first"
    newest = json.loads(run(shop, "data", "log", "--json"))[0]["counts"]
    assert (newest["dropped"], newest["relabelled"], newest["confirmed"]) == (1, 1, 1)
    first, *rows = run(shop, "data", "log").splitlines()
    assert all(name in first for name in ("photos", "kept", "dropped", "conflicts", "near"))
    assert rows[0].split()[5:10] == ["18", "15", "1", "1", "1"], "the selected one"
    assert rows[-1].split()[4:9] == ["18", "16", "0", "1", "1"]


@pytest.mark.dvc
def test_photos_left_out_are_listed_for_any_version(shop: Workspace, tmp_path: Path) -> None:
    versions = [entry["id"][:8] for entry in json.loads(run(shop, "data", "log", "--json"))]
    for version in versions:
        [near] = json.loads(run(shop, "data", "show", version, "--near", "--json"))
        assert (near["path"], near["near_path"]) == ("train/tea/copy.jpg", "test/tea/shot.jpg")
        assert (near["label"], near["near_label"], near["split"], near["near_split"]) == ("tea", "tea", "train", "test")
        claims = json.loads(run(shop, "data", "show", version, "--conflicts", "--json"))
        assert [(row["label"], row["outcome"]) for row in claims] == [("milk", "conflicts"), ("tea", "conflicts")]
        [refused] = json.loads(run(shop, "data", "show", version, "--quarantined", "--json"))
        assert (refused["path"], refused["field"]) == ("train/milk/broken.png", "photo")
        assert "1 near-duplicates" in run(shop, "data", "show", version, "--near")
    for suffix in ("csv", "parquet", "jsonl"):
        out = tmp_path / f"near.{suffix}"
        run(shop, "data", "show", "--near", "--out", str(out))
        assert [row["near_path"] for _, row in read_rows(out, required=("near_path",))] == ["test/tea/shot.jpg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["near.csv", "near.jsonl", "near.parquet"]


@pytest.mark.dvc
def test_all_that_was_left_out_or_refused_is_counted_by_reason_and_listed(shop: Workspace, tmp_path: Path) -> None:
    counted = {(each["outcome"], each["reason"]): each["number"]
               for each in json.loads(run(shop, "data", "show", "--json"))["excluded"]}  # fmt: skip
    assert counted == {
        ("conflicts", "came with several labels"): 1,
        ("dropped", "shows none of the products, a person says"): 1,
        ("near", "is a near-duplicate of a test photo, which no network may learn"): 1,
        ("quarantined", "photo: not a picture in a format that can be read"): 1,
    }
    printed = run(shop, "data", "show")
    assert "came with several labels" in printed
    assert "`cleanshelf data show --excluded --out FILE` writes all of them" in printed
    run(shop, "data", "show", "--excluded", "--out", str(tmp_path / "all.csv"))
    columns = ("outcome", "reason", "id", "label", "split", "path", "scored_by")
    rows = {row["outcome"]: row for _, row in read_rows(tmp_path / "all.csv", required=columns)}
    assert len(rows) == len(counted)
    assert (rows["near"]["path"], rows["near"]["split"]) == ("train/tea/copy.jpg", "train")
    assert (rows["quarantined"]["path"], rows["quarantined"]["id"]) == ("train/milk/broken.png", "")
    assert rows["quarantined"]["reason"].endswith("(JPEG, PNG, WEBP, GIF, BMP, TIFF)"), "with its details"
    assert (rows["dropped"]["label"], rows["dropped"]["scored_by"]) == ("tea", "person")


@pytest.mark.dvc
def test_a_version_is_shown_by_class_and_split(shop: Workspace, tmp_path: Path) -> None:
    shown = json.loads(run(shop, "data", "show", "--json"))
    classes = {row["class"]: row for row in shown["per_class"]}
    assert classes["tea"] == {"class": "tea", "train": 1, "val": 0, "test": 5, "left_out": 2, "photos": 8}
    assert sum(row["photos"] for row in classes.values()) == shown["counts"]["photos"]
    printed = run(shop, "data", "show", "--out", str(tmp_path / "classes.csv"))
    assert "all 2" in printed
    assert "classes without a val photo: 2" in printed
    assert (tmp_path / "classes.csv").read_text().startswith("class,train,val,test,left_out,photos\n")


@pytest.mark.dvc
def test_two_versions_are_compared_with_ids(shop: Workspace, tmp_path: Path) -> None:
    new, old = (entry["id"] for entry in json.loads(run(shop, "data", "log", "--json")))
    diff = json.loads(run(shop, "data", "diff", old[:8], "--json", "--out", str(tmp_path / "diff.jsonl")))
    assert {name: diff[name] for name in (*CHANGES, "unchanged")} == {
        "added": 0, "dropped": 1, "restored": 0, "relabelled": 1, "decided": 1, "unchanged": 15
    }  # fmt: skip
    assert {row["id"] for _, row in read_rows(tmp_path / "diff.jsonl", required=("id",))} == {
        photo for change in diff["changes"] for photo in change["ids"]
    }
    printed = run(shop, "data", "diff", old, new)
    assert "tea (unchanged)  tea (confirmed)" in printed
    assert all(change["ids"][0] in printed for change in diff["changes"])


@pytest.mark.dvc
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--near", "--conflicts"), "lists of their own; ask for one"),
        (("--near", "--out", "near.xlsx"), "a table ends in .csv, .parquet, .jsonl"),
        (("--out", "missing/near.csv"), "there is no folder missing"),
        (("--out", "pyproject.toml.csv"), "exists already"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(
    shop: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pyproject.toml.csv").touch()
    done = CliRunner().invoke(app, ["data", "show", *arguments, "--workspace", str(shop.root)])
    assert message in f"{done.output} {done.exception}"
    assert done.exit_code != 0


@pytest.mark.dvc
def test_near_duplicates_of_an_earlier_release_are_listed_without_partner(shop: Workspace) -> None:
    files = contents.files_of(DataVersions(shop), "selected")
    [near] = contents.near_duplicates({name: path for name, path in files.items() if name != NAME}).to_pylist()
    assert (near["path"], near["decision"], near["near_id"], near["near_path"]) == (
        "train/tea/copy.jpg", "near-test", None, None
    )  # fmt: skip
    assert contents.counts(files) == count_tables(*(contents.read(files, name) for name in ("labels", "quarantine")))
    assert set(LABELS.names) == set(contents.read(files, "labels").column_names)


@pytest.mark.dvc
def test_a_purged_photo_leaves_the_record_of_pairs(shop: Workspace, tmp_path: Path) -> None:
    copy = Workspace(shutil.copytree(shop.root, tmp_path / "copy", symlinks=True))
    [pair] = json.loads(run(copy, "data", "show", "--near", "--json"))
    run(copy, "data", "purge", pair["near_id"], "--yes")
    [left] = json.loads(run(copy, "data", "show", "--near", "--json"))
    assert (left["id"], left["decision"], left["near_id"]) == (pair["id"], "near-test", None)
    assert not (copy.data / NAME).exists()
