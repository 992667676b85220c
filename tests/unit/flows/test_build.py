"""The files of a data version, built from deliveries."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flows.data.fingerprints import Fingerprints
from flows.data.shards import pack
from flows.delivery.build import IntakeReport, build_version
from flows.delivery.decode import Decoding
from flows.delivery.splits import hold_out
from flows.errors import BadDelivery, DiskFull
from models.data.manifest import read_manifest, read_photo, read_table
from tests.deliveries import deliver, photo
from tests.versions import as_format_1


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def build(source: Path, out: Path, *, base: Path | None = None, **settings: float) -> IntakeReport:
    return build_version(source, base=base, out=out, parent="p" * 32 if base else None, **settings)  # type: ignore[arg-type]  # passed on


def test_a_version_holds_every_photo_byte_for_byte(tmp_path: Path) -> None:
    source = deliver(tmp_path / "s", {"a": 5, "b": 5})
    report = build(source, tmp_path / "v")
    manifest = read_manifest(tmp_path / "v")
    delivered = sorted(path.read_bytes() for path in source.rglob("*.png"))
    assert sorted(manifest.read_photo(row) for row in range(len(manifest))) == delivered
    assert (report.delivered, report.added, report.duplicates, report.quarantined, report.is_new) == (
        10,
        10,
        0,
        {},
        True,
    )
    assert report.counts == json.loads((tmp_path / "v" / "VERSION.json").read_text())["counts"]
    assert (report.counts["photos"], report.counts["classes"]) == (10, 2)
    index = read_table(tmp_path / "v", name="index").to_pydict()
    assert set(index["width"]) == {8}
    assert index["id"] == [sha[:16] for sha in index["sha256"]]
    for name in {path.name for path in (tmp_path / "v" / "shards").iterdir()}:
        with tarfile.open(tmp_path / "v" / "shards" / name) as tar:
            assert sorted(member.name.removesuffix(".png") for member in tar) == index["id"]


def test_a_first_delivery_larger_than_the_disk_is_refused_before_a_photo_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, more = deliver(tmp_path / "s", {"a": 5, "b": 5}), deliver(tmp_path / "m", {"a": 6, "b": 5})
    build(source, tmp_path / "v1")
    needed = sum(path.stat().st_size for path in source.rglob("*.png"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    monkeypatch.setattr(Decoding, "of", lambda _: pytest.fail("a photo is opened"))
    with pytest.raises(DiskFull, match=r"its photos take about 0\.0 GB, and the disk of .* has 0\.0 GB left"):
        build(source, tmp_path / "v2")
    assert not (tmp_path / "v2").exists()
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    assert build(more, tmp_path / "v2", base=tmp_path / "v1").added == 1, "most photos of a later delivery may be known"


def test_the_same_delivery_gives_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    source = deliver(tmp_path / "s", {"a": 5, "b": 5})
    build(source, tmp_path / "v1")
    build(source, tmp_path / "v2")
    assert contents(tmp_path / "v1") == contents(tmp_path / "v2")
    lines = [f"{path.relative_to(source)},{path.parent.name},,s" for path in source.rglob("*.png")]
    for number, order in enumerate((lines, lines[::-1])):
        (source / "manifest.csv").write_text("\n".join(["path,label,split,source", *order]))
        build(source, tmp_path / f"m{number}")
        assert contents(tmp_path / f"m{number}") == contents(tmp_path / "v1")


def test_broken_photos_are_quarantined_with_the_reason(tmp_path: Path) -> None:
    source = deliver(tmp_path / "s", {"a": 3, "b": 3})
    (source / "a" / "broken.png").write_bytes(photo(1)[:60])
    (source / "a" / "text.png").write_text("hello")
    (source / "b" / "empty.png").write_bytes(b"")
    report = build(source, tmp_path / "v")
    rows = read_table(tmp_path / "v", name="quarantine").to_pylist()
    assert [(row["path"], row["field"]) for row in rows] == [
        ("a/broken.png", "photo"),
        ("a/text.png", "photo"),
        ("b/empty.png", "photo"),
    ]
    assert sum(report.quarantined.values()) == report.counts["quarantined"] == 3
    assert "photo: the file is empty (0 bytes)" in report.quarantined


def test_duplicates_merge_and_conflicts_leave_training(tmp_path: Path) -> None:
    source = deliver(tmp_path / "s", {"a": 3, "b": 3})
    (source / "a" / "again.png").write_bytes(photo(0))
    (source / "b" / "claimed by b.png").write_bytes(photo(1))
    report = build(source, tmp_path / "v")
    assert (report.added, report.duplicates, report.conflicts) == (6, 2, 1)
    manifest = read_manifest(tmp_path / "v")
    assert manifest.decision[~manifest.kept].tolist() == ["conflict"]
    conflicts = read_table(tmp_path / "v", name="conflicts").to_pylist()
    assert [(row["label"], row["path"]) for row in conflicts] == [("a", "a/photo 1.png"), ("b", "b/claimed by b.png")]


def test_splits_are_held_out_once(tmp_path: Path) -> None:
    source = deliver(tmp_path / "s", {"a": 20, "b": 5, "one": 1})
    report = build(source, tmp_path / "v")
    manifest = read_manifest(tmp_path / "v")
    splits = {label: Counter(manifest.split[manifest.label == label]) for label in ("a", "b", "one")}
    assert splits == {"a": {"train": 14, "val": 2, "test": 4}, "b": {"train": 4, "test": 1}, "one": {"train": 1}}
    assert report.warnings == ["class 'one' has one photo; it stays in train"]
    more = deliver(tmp_path / "more", {"a": 20, "new": 10}, first_seed=500)
    second = build(more, tmp_path / "v2", base=tmp_path / "v")
    grown = read_manifest(tmp_path / "v2")
    old = np.isin(grown.id, manifest.id)
    assert grown.split[old].tolist() == manifest.split.tolist(), "what is in the version keeps its split"
    assert Counter(grown.split[~old]) == {"train": 27, "val": 3}
    assert (second.added, second.duplicates) == (30, 0)
    assert json.loads((tmp_path / "v2" / "VERSION.json").read_text())["parent"] == "p" * 32


def test_given_splits_are_kept(tmp_path: Path) -> None:
    source = tmp_path / "s"
    for number, split in enumerate(("train", "val", "test")):
        deliver(source / split, {"a": 6, "b": 6}, first_seed=number * 100)
    deliver(source / "test", {"only": 2}, first_seed=900)
    deliver(source / "train", {"NaN": 2}, first_seed=950)
    (source / "train" / "a" / "leak.png").write_bytes(photo(200))  # also a test photo
    report = build(source, tmp_path / "v")
    manifest = read_manifest(tmp_path / "v")
    assert Counter(manifest.split) == {"train": 14, "val": 12, "test": 14}
    assert report.warnings == [
        "class 'only' has no train photo; it cannot be recognised",
        "class 'NaN' is how programs write a missing value; if it is not a product, deliver without its rows",
    ]


def test_a_test_photo_never_becomes_train(tmp_path: Path) -> None:
    first = deliver(tmp_path / "s", {"a": 10, "b": 10})
    build(first, tmp_path / "v")
    build(deliver(tmp_path / "again" / "train", {"a": 10, "b": 10}).parent, tmp_path / "v2", base=tmp_path / "v")
    assert read_manifest(tmp_path / "v2").split.tolist() == read_manifest(tmp_path / "v").split.tolist()


def test_nothing_new_is_the_same_version(tmp_path: Path) -> None:
    source = deliver(tmp_path / "s", {"a": 5, "b": 5})
    (source / "a" / "broken.png").write_bytes(b"x")
    build(source, tmp_path / "v")
    report = build(source, tmp_path / "v2", base=tmp_path / "v")
    assert (report.is_new, report.added, report.duplicates) == (False, 0, 10)
    assert contents(tmp_path / "v2") == contents(tmp_path / "v")


def test_nothing_new_is_the_same_version_that_the_first_releases_wrote(tmp_path: Path) -> None:
    source, old = deliver(tmp_path / "s", {"a": 5, "b": 5}), tmp_path / "v"
    build(source, old)
    pq.write_table(pq.read_table(old / "labels.parquet").drop_columns("scored_by"), old / "labels.parquet")
    assert not build(source, tmp_path / "v2", base=old).is_new
    assert contents(tmp_path / "v2") == contents(old)
    more = build(deliver(tmp_path / "more", {"a": 1}, first_seed=90), tmp_path / "v3", base=old)
    assert (more.is_new, more.added) == (True, 1)
    assert read_manifest(tmp_path / "v3").scored_by.tolist() == [""] * 11


def test_a_later_claim_against_the_version_is_a_conflict(tmp_path: Path) -> None:
    build(deliver(tmp_path / "s", {"a": 3, "b": 3}), tmp_path / "v")
    other = tmp_path / "other"
    deliver(other, {"b": 1}, first_seed=0)  # photo 0 is of class a in the version
    report = build(other, tmp_path / "v2", base=tmp_path / "v")
    assert (report.conflicts, report.is_new) == (1, True)
    claims = read_table(tmp_path / "v2", name="conflicts").to_pylist()
    assert {(row["label"], row["source"]) for row in claims} == {("a", "s"), ("b", "other")}


def test_one_class_can_be_added_to_a_version_but_not_start_one(tmp_path: Path) -> None:
    build(deliver(tmp_path / "s", {"a": 3, "b": 3}), tmp_path / "v")
    one = deliver(tmp_path / "one", {"c": 2}, first_seed=100)
    assert build(one, tmp_path / "v2", base=tmp_path / "v").added == 2
    with pytest.raises(BadDelivery, match="one class"):
        build(one, tmp_path / "v3")
    assert not (tmp_path / "v3").exists()


def test_only_broken_photos(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "s" / label).mkdir(parents=True)
        (tmp_path / "s" / label / "x.png").write_text("no")
    with pytest.raises(BadDelivery, match="no photo could be decoded"):
        build(tmp_path / "s", tmp_path / "v")
    assert not (tmp_path / "v").exists()


def test_shards_are_bounded_and_base_shards_linked(tmp_path: Path) -> None:
    source = deliver(tmp_path / "s", {"a": 6, "b": 6})
    build_version(source, base=None, out=tmp_path / "v", max_shard_bytes=3000)
    shards = sorted((tmp_path / "v" / "shards").iterdir())
    assert len(shards) > 2
    assert all(path.stat().st_size <= 3000 for path in shards)
    more = deliver(tmp_path / "more", {"a": 1}, first_seed=50)
    build_version(more, base=tmp_path / "v", out=tmp_path / "v2")
    assert all(path.samefile(tmp_path / "v2" / "shards" / path.name) for path in shards)
    manifest = read_manifest(tmp_path / "v2")
    assert len({manifest.read_photo(row) for row in range(len(manifest))}) == 13


def test_pack_is_deterministic_and_seekable(tmp_path: Path) -> None:
    photos = [(f"{n:016x}", photo(n, kind="JPEG")) for n in range(3)]
    packed = pack(photos, folder=tmp_path / "shards")
    again = pack(photos, folder=tmp_path / "other" / "shards")
    assert (packed.shards, packed.offset.tolist()) == (again.shards, again.offset.tolist())
    names = list(packed.shards)
    for (_, content), number, offset, size in zip(photos, packed.shard, packed.offset, packed.size, strict=True):
        assert read_photo(tmp_path, names[number], offset, size) == content
    for name, md5 in packed.shards.items():
        content = (tmp_path / "shards" / f"{name}.tar").read_bytes()
        assert (hashlib.sha256(content).hexdigest(), hashlib.md5(content).hexdigest()) == (name, md5)
    with pytest.raises(ValueError, match="ends before offset"):
        read_photo(tmp_path, names[0], 10**9, 1)
    with pytest.raises(ValueError, match="no such shard"):
        read_photo(tmp_path, "beef", 0, 1)


@pytest.mark.parametrize(
    ("number", "share", "expected"), [(1, 0.5, 0), (4, 0.1, 0), (5, 0.1, 1), (20, 0.1, 2), (2, 0.9, 1), (9, 0.0, 0)]
)
def test_shares_per_class(number: int, share: float, expected: int) -> None:
    ids, labels = [f"{n}" for n in range(number)] + [f"x{n}" for n in range(10)], ["a"] * number + ["b"] * 10
    chosen = hold_out(ids, labels, share=share, seed=1, split="val")
    assert int(chosen[:number].sum()) == expected
    assert chosen.tolist() == hold_out(ids[::-1], labels[::-1], share=share, seed=1, split="val")[::-1].tolist()


def test_the_seed_chooses() -> None:
    ids, labels = [f"{n}" for n in range(100)], ["a"] * 100
    one, two = (hold_out(ids, labels, share=0.2, seed=seed, split="val") for seed in (1, 2))
    assert one.tolist() != two.tolist()


def draw_jpeg(seed: int, *, side: int = 96, quality: int = 95) -> bytes:
    """A JPEG of coloured patches; the same seed gives the same picture at any size and quality."""
    patches = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(patches).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write_files(folder: Path, photos: dict[str, bytes]) -> Path:
    for name, content in photos.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_photo_that_is_nearly_a_test_photo_stays_out_of_training(tmp_path: Path) -> None:
    first = {f"{split}/{label}/{n}.jpg": draw_jpeg(n + 10 * k) for k, (split, label) in
             enumerate([("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")]) for n in range(3)}  # fmt: skip
    first["train/a/again.jpg"] = draw_jpeg(20, quality=60)  # test/a/0 in another encoding, in the same delivery
    assert build(write_files(tmp_path / "s", first), tmp_path / "v").near == 1
    more = {"train/a/small.jpg": draw_jpeg(21, side=60), "val/b/soft.jpg": draw_jpeg(31, quality=40),
            "train/a/new.jpg": draw_jpeg(99),
            "test/a/known.jpg": draw_jpeg(1, quality=70), "test/b/fresh.jpg": draw_jpeg(98)}  # fmt: skip
    report = build(write_files(tmp_path / "more", more), tmp_path / "v2", base=tmp_path / "v")
    assert (report.added, report.near) == (5, 3)
    manifest, index = read_manifest(tmp_path / "v2"), read_table(tmp_path / "v2", name="index").to_pydict()
    decided = dict(zip(index["path"], manifest.decision.tolist(), strict=True))
    assert {path: decision for path, decision in decided.items() if decision} == {
        "train/a/again.jpg": "near-test",
        "train/a/small.jpg": "near-test",
        "val/b/soft.jpg": "near-test",
        "test/a/known.jpg": "near-train",
    }
    assert (manifest.kept == (manifest.decision == "")).all()
    assert not build(tmp_path / "more", tmp_path / "v3", base=tmp_path / "v2").is_new
    assert contents(tmp_path / "v3") == contents(tmp_path / "v2")


def test_a_version_that_grows_from_format_1_is_of_format_2(tmp_path: Path) -> None:
    first = {f"{split}/{label}/{n}.jpg": draw_jpeg(n + 10 * k) for k, (split, label) in
             enumerate([("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")]) for n in range(3)}  # fmt: skip
    build(write_files(tmp_path / "s", first), tmp_path / "v")
    build(tmp_path / "s", tmp_path / "former")
    as_format_1(tmp_path / "former")
    former = contents(tmp_path / "former")
    assert {name for name in former if not name.startswith("shards/")} == {
        "VERSION.json", "conflicts.parquet", "index.parquet", "labels.parquet", "looks.parquet", "quarantine.parquet"
    }  # fmt: skip
    assert pq.read_schema(tmp_path / "former" / "labels.parquet").names[-1] == "judge"
    assert not build(tmp_path / "s", tmp_path / "same", base=tmp_path / "former").is_new
    assert contents(tmp_path / "same") == former, "without a new photo the id stays"

    more = write_files(
        tmp_path / "more", {"train/a/small.jpg": draw_jpeg(21, side=60), "train/b/new.jpg": draw_jpeg(99)}
    )
    for base in ("v", "former"):
        report = build(more, tmp_path / f"on {base}", base=tmp_path / base)
        assert (report.added, report.near) == (2, 1), "the test photo is known by its fingerprint of format 1 too"
    grown = contents(tmp_path / "on former")
    assert grown == contents(tmp_path / "on v"), "the format of the base makes no difference"
    assert json.loads(grown["VERSION.json"])["format"] == 2
    assert "fingerprints.parquet" in grown
    assert "looks.parquet" not in grown
    assert pq.read_schema(tmp_path / "on former" / "labels.parquet").names[-1] == "scored_by"
    assert contents(tmp_path / "former") == former


def test_a_version_without_fingerprints_grows_all_the_same(tmp_path: Path) -> None:
    source = deliver(tmp_path / "s", {"a": 5, "b": 5})
    build(source, tmp_path / "v")
    (tmp_path / "v" / "fingerprints.parquet").unlink()
    assert not build(source, tmp_path / "v2", base=tmp_path / "v").is_new
    assert contents(tmp_path / "v2") == contents(tmp_path / "v")
    build(deliver(tmp_path / "more", {"a": 2}, first_seed=80), tmp_path / "v3", base=tmp_path / "v")
    assert len(Fingerprints.read(tmp_path / "v3").id) == 2
