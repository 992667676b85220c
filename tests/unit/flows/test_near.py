"""Near-duplicates across the test split: what is left out, what stays, and the record of every pair."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from flows.cli.data import ingest_delivery
from flows.data.near import NAME, PAIRS, read_pairs, write_pairs
from flows.delivery import near
from flows.delivery.build import IntakeReport, build_version
from flows.delivery.near import LIMIT, parse_limit
from flows.errors import InputError
from models.data.manifest import NEAR, read_manifest, read_table
from tests.packshots import deliver_packshots, encoded, packshot

WHITE = {"sway": 0.02}


def build(source: Path, out: Path, **settings: Any) -> IntakeReport:
    return build_version(source, base=settings.pop("base", None), out=out, **settings)


def pairs_of(version: Path) -> list[dict[str, Any]]:
    """Pairs of the version, with both labels."""
    labels = read_table(version, name="labels").to_pydict()
    label = dict(zip(labels["id"], labels["label"], strict=True))
    pairs = read_pairs(version / NAME).to_pylist()
    return [{**pair, "labels": (label[pair["id"]], label[pair["near"]])} for pair in pairs]


@pytest.mark.parametrize(
    ("kind", "looks"),
    [
        ("bottle", {"by": "word"}),
        ("garment", {"by": "colour", "background": "grey"}),
        ("box", {"by": "word", "background": "gradient"}),
        ("garment", {"by": "word", "background": "transparent"}),
    ],
)
def test_packshots_of_different_products_are_not_taken_for_one(
    tmp_path: Path, kind: str, looks: dict[str, Any]
) -> None:
    source = deliver_packshots(tmp_path / "s", kind, **WHITE, **looks)
    report = build(source, tmp_path / "v")
    pairs = pairs_of(tmp_path / "v")
    assert all(one == other for one, other in (pair["labels"] for pair in pairs)), "never across labels"
    manifest = read_manifest(tmp_path / "v")
    train = manifest.split == "train"
    kept = Counter(manifest.label[train & manifest.kept].tolist())
    assert set(kept) == set(manifest.classes)
    assert all(2 * kept[label] >= count for label, count in Counter(manifest.label[train].tolist()).items())
    assert report.near == (~manifest.kept).sum() == sum(pair["decision"] != "" for pair in pairs) < 20


def copies(folder: Path, *, label: str = "Alma") -> Path:
    """A test photo in `test/Alma`, a copy of it in `train`, and other photos of two products."""
    photos = {
        "test/Alma/a.jpg": encoded(packshot("box", 0, sway=0)),
        f"train/{label}/copy.jpg": encoded(packshot("box", 0, sway=0), quality=80),
    }
    for number, name in enumerate(("Alma", "Brio")):
        photos |= {
            f"train/{name}/{seed}.jpg": encoded(packshot("garment", number, seed=seed, sway=0.2)) for seed in range(4)
        }
    for path, content in photos.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


@pytest.mark.parametrize("label", ["Alma", "Brio"])
def test_a_copy_is_left_out_and_its_pair_is_on_record(tmp_path: Path, label: str) -> None:
    assert build(copies(tmp_path / "s", label=label), tmp_path / "v").near == 1
    [pair] = pairs_of(tmp_path / "v")
    index = read_table(tmp_path / "v", name="index").to_pydict()
    path = dict(zip(index["id"], index["path"], strict=True))
    assert (path[pair["id"]], path[pair["near"]]) == (f"train/{label}/copy.jpg", "test/Alma/a.jpg")
    assert (pair["decision"], pair["labels"]) == ("near-test", (label, "Alma"))
    assert 0 < pair["distance"] < 3
    assert 0 < pair["difference"] < LIMIT


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    report = build(copies(tmp_path / "s"), tmp_path / "v", near_duplicates=None)
    assert (report.near, (tmp_path / "v" / NAME).exists()) == (0, False)
    assert read_manifest(tmp_path / "v").kept.all()
    assert build(tmp_path / "s", tmp_path / "strict", near_duplicates=0.001).near == 0


def test_pairs_stay_on_record_in_later_versions_and_nothing_new_is_the_same_version(tmp_path: Path) -> None:
    build(copies(tmp_path / "s"), tmp_path / "v")
    again = build(tmp_path / "s", tmp_path / "again", base=tmp_path / "v")
    assert not again.is_new
    assert (tmp_path / "again" / NAME).read_bytes() == (tmp_path / "v" / NAME).read_bytes()
    more = tmp_path / "more" / "Brio"
    more.mkdir(parents=True)
    (more / "again.jpg").write_bytes(encoded(packshot("box", 0, sway=0), quality=70))
    assert build(more.parent, tmp_path / "v2", base=tmp_path / "v").near == 1
    assert [pair["labels"] for pair in pairs_of(tmp_path / "v2")].count(("Alma", "Alma")) == 1
    assert len(pairs_of(tmp_path / "v2")) == 2
    assert all(pair["near"] == pairs_of(tmp_path / "v")[0]["near"] for pair in pairs_of(tmp_path / "v2"))


def test_a_class_that_would_lose_most_photos_keeps_them_and_that_is_said(tmp_path: Path) -> None:
    shutil.rmtree(copies(tmp_path / "s") / "train" / "Alma")
    for quality in (40, 60):
        path = tmp_path / "s" / "train" / "Alma" / f"{quality}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(packshot("box", 0, sway=0), quality=quality))
    report = build(tmp_path / "s", tmp_path / "v")
    assert report.near == 0
    assert read_manifest(tmp_path / "v").kept.all()
    assert [(pair["decision"], pair["labels"]) for pair in pairs_of(tmp_path / "v")] == [("", ("Alma", "Alma"))] * 2
    [note] = [warning for warning in report.warnings if "near-duplicates" in warning]
    assert note.startswith("class 'Alma' would lose most photos as near-duplicates")
    assert "`cleanshelf data show --near`" in note


def test_a_class_whose_test_photos_are_all_known_is_named(tmp_path: Path) -> None:
    build(copies(tmp_path / "s"), tmp_path / "v", test_share=0.0)
    for number, seed in enumerate(range(2)):
        path = tmp_path / "more" / "test" / "Brio" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(packshot("garment", 1, seed=seed, sway=0.2), quality=60))
    report = build(tmp_path / "more", tmp_path / "v2", base=tmp_path / "v")
    assert report.near == 2
    assert {pair["decision"] for pair in pairs_of(tmp_path / "v2")} == set(NEAR)
    assert any(warning.startswith("class 'Brio' has no test photo left") for warning in report.warnings)


def test_a_photo_that_can_no_longer_be_decoded_is_no_near_duplicate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near, "read_photo", lambda *_: b"no photo")
    assert build(copies(tmp_path / "s"), tmp_path / "v").near == 0


@pytest.mark.parametrize(("text", "limit"), [("off", None), (" OFF ", None), ("0.7", 0.7), ("1", 1.0)])
def test_the_limit_is_off_or_a_number(text: str, limit: float | None) -> None:
    assert parse_limit(text) == limit


@pytest.mark.parametrize("text", ["on", "0", "-1", "1.5", "nan", "inf", "", "6"])
def test_another_limit_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=f"--near-duplicates: '{text}' is neither `off` nor a number"):
        parse_limit(text)


def test_the_documented_limit_is_the_default() -> None:
    assert ingest_delivery.__defaults__ is not None
    assert str(LIMIT) in ingest_delivery.__defaults__


def test_pairs_survive_their_file_and_no_pairs_make_none(tmp_path: Path) -> None:
    assert not read_pairs(tmp_path / NAME).num_rows
    write_pairs(tmp_path, PAIRS.empty_table())
    assert not list(tmp_path.iterdir())
    rows = [dict(zip(PAIRS.names, (name, "c", "near-test", 1.5, 0.25), strict=True)) for name in ("b", "a")]
    write_pairs(tmp_path, PAIRS.empty_table().from_pylist(rows, PAIRS))
    assert read_pairs(tmp_path / NAME).to_pylist() == rows[::-1]
