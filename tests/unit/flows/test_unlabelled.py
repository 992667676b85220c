"""Photos without a label: how they are delivered, counted and left out, and how they get a label later."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.data.diff import compare_labels
from flows.data.near import NAME, read_pairs
from flows.delivery.build import IntakeReport, build_version
from flows.delivery.rows import read_delivery
from flows.errors import BadDelivery
from flows.feedback import HumanLabel, apply
from models.data.manifest import UNLABELLED, Manifest, class_counts, count, read_manifest, read_table, write_labels
from models.training.answers import student_rows
from tests.deliveries import deliver, photo
from tests.packshots import encoded, packshot

SEEDS = range(100, 104)  # of the photos without a label
ROWS = tuple(f"{seed}.png" for seed in SEEDS)
Photo = tuple[str, str, bool, str]


def loose(folder: Path, seeds: Sequence[int] = SEEDS) -> Path:
    """Photos in a folder and one below it, without labels."""
    for seed in seeds:
        path = folder / ("below/it" if seed % 2 else "") / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(seed))
    return folder


def listed(folder: Path, *rows: str, photos: dict[str, bytes] | None = None) -> Path:
    """A manifest with the columns path, label and split, beside the photos of SEEDS or others."""
    folder.mkdir()
    for name, content in (photos or {f"{seed}.png": photo(seed) for seed in SEEDS}).items():
        (folder / name).write_bytes(content)
    (folder / "manifest.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    return folder


def labelled(folder: Path) -> Path:
    return deliver(folder, {"a": 10, "b": 10})


def build(source: Path, out: Path, *, base: Path | None = None, **settings: Any) -> IntakeReport:
    return build_version(source, base=base, out=out, **settings)


def photos_of(version: Path) -> dict[str, Photo]:
    """Given label, split, kept and decision of each photo, by its file name as delivered."""
    paths, manifest = read_table(version, name="index")["path"].to_pylist(), read_manifest(version)
    assert manifest.label.tolist() == manifest.given_label.tolist()
    columns = (manifest.label, manifest.split, manifest.kept.tolist(), manifest.decision)
    return dict(zip((Path(path).name for path in paths), zip(*columns, strict=True), strict=True))


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """A version with twenty labelled and four unlabelled photos."""
    build(labelled(tmp_path / "s"), tmp_path / "one")
    build(loose(tmp_path / "loose"), tmp_path / "both", base=tmp_path / "one", unlabelled=True)
    return tmp_path / "both"


def test_all_photos_below_a_folder_are_taken_whatever_the_folders_mean(tmp_path: Path) -> None:
    for path in ("x.png", "train/y.png", "deep/test/milk/z.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    (tmp_path / "notes.txt").write_text("")
    delivery = read_delivery(tmp_path, unlabelled=True)
    assert delivery.rows["path"].to_pylist() == ["x.png", "deep/test/milk/z.png", "train/y.png"]
    assert {*delivery.rows["label"].to_pylist()} == {""}
    assert {*delivery.rows["split"].to_pylist()} == {UNLABELLED}
    assert (delivery.refused, delivery.seen) == ([], 4)


def test_a_manifest_marks_photos_without_a_label_and_other_blank_labels_are_refused(tmp_path: Path) -> None:
    rows = ("100.png,,unlabelled", "101.png,   ,unlabelled", "102.png,,train", "103.png,milk,unlabelled")
    delivery = read_delivery(listed(tmp_path / "s", *rows))
    assert delivery.rows["path"].to_pylist() == ["100.png", "101.png"]
    assert [(row.path, row.field, row.reason) for row in delivery.refused] == [
        ("102.png", "label", "is blank"),
        ("103.png", "label", "is given, but the split says unlabelled; leave one of them blank"),
    ]


@pytest.mark.parametrize("is_empty", [True, False])
def test_a_folder_without_photos_and_one_with_a_manifest_are_refused(tmp_path: Path, *, is_empty: bool) -> None:
    source = tmp_path / "s"
    source.mkdir() if is_empty else listed(source, "100.png,milk,train")
    with pytest.raises(
        BadDelivery, match="is empty; put" if is_empty else r"manifest.csv: --unlabelled takes .*without"
    ):
        read_delivery(source, unlabelled=True)


def test_they_are_counted_apart_and_belong_to_no_class(both: Path) -> None:
    found, manifest = photos_of(both), read_manifest(both)
    assert {found[row] for row in ROWS} == {("", UNLABELLED, True, "")}
    counts = count(both)
    assert (counts["photos"], counts["kept"], counts[UNLABELLED]) == (24, 24, 4)
    assert counts["train"] + counts["val"] + counts["test"] == counts["unchanged"] == 20
    assert manifest.classes == ["a", "b"] == class_counts(read_table(both, name="labels"))["class"].to_pylist()
    assert set(manifest.target[manifest.split == UNLABELLED]) == {-1}
    read = {manifest.read_photo(row) for row in np.flatnonzero(manifest.split == UNLABELLED).tolist()}
    assert read == {photo(seed) for seed in SEEDS}
    assert counts["classes"] == 2
    assert np.isin(np.flatnonzero(manifest.split == UNLABELLED), student_rows(manifest)).all()


def test_the_same_photos_again_change_nothing_with_a_label_or_without(both: Path, tmp_path: Path) -> None:
    assert not build(tmp_path / "loose", tmp_path / "again", base=both, unlabelled=True).is_new
    report = build(tmp_path / "s", tmp_path / "bare", base=both, unlabelled=True)
    assert (report.is_new, report.added, report.duplicates, report.conflicts) == (False, 0, 20, 0)


def test_a_version_may_begin_without_labels_and_still_gets_test_photos(tmp_path: Path) -> None:
    assert build(loose(tmp_path / "loose"), tmp_path / "bare", unlabelled=True).counts["classes"] == 0
    report = build(labelled(tmp_path / "s"), tmp_path / "both", base=tmp_path / "bare")
    assert (report.counts["test"], report.counts["val"], report.counts[UNLABELLED]) == (4, 2, 4)
    more = deliver(tmp_path / "more", {"a": 10, "b": 10}, first_seed=50)
    assert build(more, tmp_path / "later", base=tmp_path / "both").counts["test"] == 4, (
        "only the first labels bring some"
    )


def test_a_label_that_comes_later_wins_and_the_photo_is_merged_like_a_new_one(both: Path, tmp_path: Path) -> None:
    rows = ("100.png,a,test", "101.png,b,", "102.png,a,", "102.png,b,")
    report = build(listed(tmp_path / "more", *rows), tmp_path / "v", base=both)
    assert (report.added, report.labelled, report.duplicates, report.conflicts) == (0, 3, 1, 1)
    assert "0 new photos, 3 photos with their first label, 1 duplicates" in report.in_words()
    found = photos_of(tmp_path / "v")
    assert [found[row] for row in ROWS] == [
        ("a", "test", True, ""),
        ("b", "train", True, ""),
        ("a", "train", False, "conflict"),
        ("", UNLABELLED, True, ""),
    ]
    manifest, index = read_manifest(tmp_path / "v"), read_table(tmp_path / "v", name="index").to_pydict()
    assert len(manifest) == 24
    assert manifest.read_photo(index["path"].index("100.png")) == photo(100), "it stays where it was"
    assert set(read_table(tmp_path / "v", name="conflicts")["label"].to_pylist()) == {"a", "b"}
    diff = compare_labels(both / "labels.parquet", tmp_path / "v" / "labels.parquet")
    assert (diff.relabelled, diff.dropped, diff.unchanged) == (2, 1, 21)
    again = build(tmp_path / "more", tmp_path / "again", base=tmp_path / "v")
    assert not again.is_new


def test_a_label_in_the_same_delivery_wins_whatever_the_order_of_its_rows(tmp_path: Path) -> None:
    rows = ("100.png,,unlabelled", "100.png,a,train", "101.png,b,train", "101.png,,unlabelled", "102.png,,unlabelled")
    report = build(listed(tmp_path / "s", *rows), tmp_path / "v", test_share=0.0, val_share=0.0)
    found = photos_of(tmp_path / "v")
    assert [found[row][:2] for row in ROWS[:3]] == [("a", "train"), ("b", "train"), ("", UNLABELLED)]
    assert (report.added, report.duplicates, report.conflicts) == (3, 2, 0)


def test_a_person_may_label_such_a_photo_or_take_it_out_for_good(both: Path, tmp_path: Path) -> None:
    before = read_manifest(both)
    first, second, *_ = np.flatnonzero(before.split == UNLABELLED).tolist()
    after, done = apply(before, {first: HumanLabel("a", ""), second: HumanLabel("", "a hand")})
    assert (done.labelled, done.dropped, done.relabelled, done.confirmed) == (1, 1, 0, 0)
    given = (after.given_label[first], after.label[first], after.split[first], after.decision[first], after.kept[first])
    assert given == ("a", "a", "train", "checked", True)
    assert after.classes == ["a", "b"]
    assert (after.split[second], after.label[second], after.kept[second]) == (UNLABELLED, "", False)
    assert second not in student_rows(after)
    out = write(both, after, tmp_path / "people")
    assert (count(out)["confirmed"], count(out)["dropped"], count(out)[UNLABELLED]) == (1, 1, 2)
    paths = read_table(out, name="index")["path"].to_pylist()
    more = listed(tmp_path / "more", *(f"{Path(paths[row]).name},b,train" for row in (first, second)))
    report = build(more, tmp_path / "v", base=out)
    last = read_manifest(tmp_path / "v")
    assert (report.labelled, report.conflicts, last.decision[first]) == (0, 1, "conflict"), (
        "it has a label to contradict"
    )
    assert (last.split[second], last.label[second], last.kept[second]) == (UNLABELLED, "", False)


def write(version: Path, manifest: Manifest, out: Path) -> Path:
    """The version with other labels."""
    shutil.copytree(version, out)
    write_labels(out, manifest)
    return out


def shots(folder: Path, **photos: str) -> Path:
    """A manifest with packshots of a box, in one encoding each, and of garments; label and split by file name."""
    folder.mkdir()
    rows = ["path,label,split"]
    for number, (name, row) in enumerate(photos.items()):
        is_box = name.startswith("box")
        shot = packshot("box", 0, sway=0) if is_box else packshot("garment", number, sway=0)
        (folder / f"{name}.jpg").write_bytes(encoded(shot, quality=90 - 10 * int(name[-1]) if is_box else 90))
        rows.append(f"{name}.jpg,{row}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder


OTHERS = {"one": "Alma,train", "two": "Brio,train"}


@pytest.mark.parametrize("is_first", [True, False, None])
def test_a_near_duplicate_of_a_test_photo_teaches_nothing_whichever_comes_first(
    tmp_path: Path, *, is_first: bool | None
) -> None:
    bare, test = {"box0": ",unlabelled"}, {"box1": "Alma,test"}
    deliveries = {True: [bare, test], False: [test, bare], None: [{**bare, **test}]}[is_first]
    base, near = None, 0
    for number, photos in enumerate(deliveries):
        source = shots(tmp_path / f"s{number}", **photos, **(OTHERS if number == 0 else {}))
        near += build(source, tmp_path / f"v{number}", base=base, test_share=0.0, val_share=0.0).near
        base = tmp_path / f"v{number}"
    assert base is not None
    found = photos_of(base)
    assert (found["box0.jpg"], found["box1.jpg"]) == (("", UNLABELLED, False, "near-test"), ("Alma", "test", True, ""))
    assert near == len(read_pairs(base / NAME)) == 1
    manifest = read_manifest(base)
    assert UNLABELLED not in manifest.split[student_rows(manifest)]
    named = shots(tmp_path / "named", box0="Brio,test", two="Brio,train")
    (named / "box0.jpg").write_bytes((tmp_path / ("s1" if is_first is False else "s0") / "box0.jpg").read_bytes())
    build(named, tmp_path / "last", base=base, test_share=0.0)
    assert photos_of(tmp_path / "last")["box0.jpg"] == ("Brio", "test", True, ""), "a test photo may resemble another"
    assert not (tmp_path / "last" / NAME).exists()


def test_a_class_that_loses_test_photos_is_not_made_of_photos_without_a_label(tmp_path: Path) -> None:
    """All photos without a label are copies of test photos; none is spared, as one would be of a class."""
    source = shots(tmp_path / "s", box0=",unlabelled", box1=",unlabelled", box2="Alma,test", **OTHERS)
    assert build(source, tmp_path / "v", test_share=0.0).near == 2
    assert not read_manifest(tmp_path / "v").kept[:5].all()


def run(shop: Path, *arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments, "--workspace", str(shop)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.dvc
def test_commands_version_list_purge_and_restore_them_like_others(tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    run(shop, "init")
    said = run(shop, "ingest", str(loose(tmp_path / "loose")), "--unlabelled")
    assert "4 photos without a label, for distillation only" in said
    run(shop, "ingest", str(labelled(tmp_path / "s")))
    shown = json.loads(run(shop, "data", "show", "--json"))
    assert (shown["counts"][UNLABELLED], shown["counts"]["photos"], shown["problems"]) == (4, 24, [])
    assert {row["class"] for row in shown["per_class"]} == {"a", "b"}
    first = json.loads(run(shop, "data", "log", "--json"))[-1]["id"]
    assert json.loads(run(shop, "data", "diff", first, "--json"))["per_class"].keys() == {"a", "b"}
    labels = read_table(shop / "data", name="labels").to_pylist()
    gone = next(row["id"] for row in labels if row["split"] == UNLABELLED)
    run(shop, "data", "purge", gone, "--yes")
    assert (count(shop / "data")[UNLABELLED], count(shop / "data")["photos"]) == (3, 23)
    run(shop, "data", "rollback", first[:12])
    assert (count(shop / "data")[UNLABELLED], count(shop / "data")["photos"]) == (3, 3), "purged there too"
    again = json.loads(run(shop, "ingest", str(tmp_path / "loose"), "--unlabelled", "--json"))["report"]
    assert again["quarantined"] == {"photo: was deleted for good by `data purge`": 1}
