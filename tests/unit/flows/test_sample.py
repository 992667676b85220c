"""The sample: families of similar packs, faults as the truth lists them, and the same bytes from the same seed."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from flows.errors import InputError
from flows.sample.artwork import front
from flows.sample.deliver import TRUTH_SCHEMA, Part, Truth, deliver, read_truth, write_truth
from flows.sample.draw import Difficulty, draw, draw_non_product
from flows.sample.families import assortment
from pixels import BadPhoto, decode

FAMILY_OF = {sku.label: sku.family.brand for sku in assortment()}


@dataclass(frozen=True)
class Delivered:
    folder: Path
    table: Truth

    @property
    def truth(self) -> list[dict[str, str]]:
        return self.table.to_pylist()

    @property
    def manifest(self) -> list[dict[str, str]]:
        with (self.folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    @property
    def files(self) -> dict[str, bytes]:
        return {
            path.relative_to(self.folder).as_posix(): path.read_bytes()
            for path in self.folder.rglob("*")
            if path.is_file() and path.name != "manifest.csv"
        }

    def of_kind(self, *kinds: str) -> list[dict[str, str]]:
        return [row for row in self.truth if row["kind"] in kinds and row["split"] == "train"]


def delivered(folder: Path, part: Part, seed: int = 7) -> Delivered:
    return Delivered(folder, deliver(folder, seed=seed, part=part))


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Delivered:
    return delivered(tmp_path_factory.mktemp("stock"), "stock")


@pytest.fixture(scope="module")
def week(tmp_path_factory: pytest.TempPathFactory) -> Delivered:
    return delivered(tmp_path_factory.mktemp("week"), "delivery")


def test_the_assortment_is_seven_families_of_four_look_alikes() -> None:
    skus = assortment()
    assert len({sku.label for sku in skus}) == 28
    assert set(Counter(sku.family for sku in skus).values()) == {4}
    assert len({sku.family.shape for sku in skus}) == 7
    assert len({(sku.family, sku.band, sku.stretch) for sku in skus}) == 28  # siblings differ in band or size
    assert skus[0].label == "Alma Milk Whole 1 l"


@pytest.mark.parametrize("sku", assortment(), ids=lambda sku: sku.label)
def test_a_photo_is_rgb_of_the_promised_size_and_repeats_with_its_generator(sku) -> None:  # type: ignore[no-untyped-def]  # parametrised
    photos = [draw(sku, np.random.default_rng(seed)) for seed in (3, 3, 4)]
    for photo in photos:
        assert photo.mode == "RGB"
        assert 120 <= min(photo.size) <= 180
        assert 0.74 <= photo.width / photo.height <= 1.35
    assert photos[0].tobytes() == photos[1].tobytes() != photos[2].tobytes()


def test_the_pack_covers_most_of_the_picture() -> None:
    calm = Difficulty(tilt_deg=0, perspective=0, light=0, blur_px=0, noise=0, clutter=0, occlusion=0)
    covers = []
    for sku in assortment():
        photo = np.asarray(draw(sku, np.random.default_rng(0), difficulty=calm), dtype=int)
        covers.append((np.abs(photo - photo[:, :1]).max(axis=2) > 3).mean())  # the background is even along a row
    assert min(covers) > 0.4
    assert np.mean(covers) > 0.55


def test_without_band_contrast_the_bands_lie_closer_together() -> None:
    first, second = assortment()[16:18]  # one can, two flavours
    apart = [
        np.abs(np.subtract(*(np.asarray(front(sku, band_contrast=c), dtype=float) for sku in (first, second)))).mean()
        for c in (0.0, 0.5, 1.0)
    ]
    assert apart[0] < 0.4 * apart[2]  # what is left is the word
    assert apart[0] < apart[1] < apart[2]


def test_pictures_without_a_product_differ() -> None:
    pictures = {draw_non_product(np.random.default_rng(seed)).tobytes() for seed in range(8)}
    assert len(pictures) == 8


def test_the_stock_is_small(stock: Delivered) -> None:
    assert sum(len(data) for data in stock.files.values()) + (stock.folder / "manifest.csv").stat().st_size < 5_000_000


@pytest.mark.parametrize(
    ("part", "kinds"),
    [
        ("stock", {"non-product": 12, "duplicate": 6, "conflict": 6, "corrupt": 4}),
        ("week", {"non-product": 2, "duplicate": 3, "corrupt": 2}),
    ],
)
def test_the_planted_faults_are_counted(part: str, kinds: dict[str, int], request: pytest.FixtureRequest) -> None:
    found = Counter(row["kind"] for row in request.getfixturevalue(part).of_kind(*kinds))
    assert found == kinds


@pytest.mark.parametrize("part", ["stock", "week"])
def test_truth_and_manifest_describe_the_same_files(part: str, request: pytest.FixtureRequest) -> None:
    found: Delivered = request.getfixturevalue(part)
    files = {path: hashlib.sha256(data).hexdigest() for path, data in found.files.items()}
    assert Counter(files.values()) == Counter(row["sha256"] for row in found.truth)
    assert all(row["id"] == row["sha256"][:16] for row in found.truth)
    sent = Counter((files[row["path"]], row["label"]) for row in found.manifest if row["path"] in files)
    assert sent == Counter((row["sha256"], row["given_label"]) for row in found.truth)
    assert [row["path"] for row in found.manifest if row["path"] not in files] == ["photos/IMG_0000.jpg"]
    assert {row["split"] for row in found.manifest} == ({"", "test"} if part == "stock" else {""})
    assert all(row["source"] for row in found.manifest)


def test_the_train_split_has_a_long_tail(stock: Delivered) -> None:
    counts = Counter(row["true_label"] for row in stock.of_kind("clean", "flipped"))
    assert (max(counts.values()), min(counts.values()), len(counts)) == (60, 4, 28)
    assert 480 <= counts.total() <= 560
    assert sorted(counts.values())[14] < 20  # half of the products are rare


def test_a_quarter_is_flipped_inside_the_family_and_right_labels_stay_the_majority(stock: Delivered) -> None:
    rows = stock.of_kind("clean", "flipped")
    flipped = stock.of_kind("flipped")
    assert 0.24 <= len(flipped) / len(rows) <= 0.26
    assert all(row["given_label"] == row["true_label"] for row in stock.of_kind("clean"))
    assert all(row["given_label"] != row["true_label"] for row in flipped)
    assert all(FAMILY_OF[row["given_label"]] == FAMILY_OF[row["true_label"]] for row in flipped)
    under = defaultdict(list)
    for row in rows:
        under[row["given_label"]].append(row["kind"])
    assert all(kinds.count("clean") > kinds.count("flipped") for kinds in under.values())
    own, lost = Counter(row["true_label"] for row in rows), Counter(row["true_label"] for row in flipped)
    assert all(lost[label] <= 1 for label, count in own.items() if count < 6)


def test_the_test_split_is_clean_and_apart(stock: Delivered) -> None:
    test = [row for row in stock.truth if row["split"] == "test"]
    assert set(Counter(row["true_label"] for row in test).values()) == {10}
    assert len(test) == 280
    assert all(row["kind"] == "clean" and row["given_label"] == row["true_label"] for row in test)
    train = {row["id"] for row in stock.truth if row["split"] == "train"}
    assert train.isdisjoint(row["id"] for row in test)


def test_duplicates_repeat_a_label_and_conflicts_do_not(stock: Delivered) -> None:
    first = {row["id"]: row for row in stock.of_kind("clean", "flipped")}
    for copy in stock.of_kind("duplicate"):
        assert first[copy["id"]]["given_label"] == copy["given_label"]
    claims = defaultdict(set)
    for row in stock.of_kind("conflict"):
        claims[row["id"]].add(row["given_label"])
    assert [len(labels) for labels in claims.values()] == [2, 2, 2]


@pytest.mark.parametrize("part", ["stock", "week"])
def test_exactly_the_corrupt_files_cannot_be_used(part: str, request: pytest.FixtureRequest) -> None:
    found: Delivered = request.getfixturevalue(part)
    corrupt = {row["sha256"]: row["given_label"] for row in found.truth if row["kind"] == "corrupt"}
    for path, data in found.files.items():
        digest = hashlib.sha256(data).hexdigest()
        if corrupt.get(digest):
            with pytest.raises(BadPhoto):
                decode(data)
        else:
            assert decode(data).mode == "RGB", path


def test_broken_files_of_every_sort_are_in_the_stock(stock: Delivered) -> None:
    corrupt = {row["sha256"]: row["given_label"] for row in stock.of_kind("corrupt")}
    starts = {data[:2] for data in stock.files.values() if corrupt.get(hashlib.sha256(data).hexdigest())}
    assert starts == {b"", b"\xff\xd8", b"Ph"}
    assert sum(label == "" for label in corrupt.values()) == 1


def test_file_names_are_awkward_and_keep_the_label_to_themselves(stock: Delivered) -> None:
    paths = list(stock.files)
    for mark in (" ", "'", '"', ",", "ß", "写"):
        assert any(mark in path for path in paths), mark
    words = {sku.word.lower() for sku in assortment()} | {sku.family.brand.lower() for sku in assortment()}
    assert not any(word in path.lower() for word in words for path in paths)
    assert not any("truth" in path.name for path in stock.folder.rglob("*"))


def test_a_later_delivery_repeats_three_photos_of_the_stock(stock: Delivered, week: Delivered) -> None:
    known = {row["id"]: row for row in stock.of_kind("clean")}
    assert all(known[row["id"]]["given_label"] == row["given_label"] for row in week.of_kind("duplicate"))
    assert known.keys().isdisjoint(row["id"] for row in week.of_kind("clean", "flipped"))
    assert len(week.of_kind("flipped")) == 15
    assert {row["true_label"] for row in week.of_kind("clean", "flipped")} == FAMILY_OF.keys()
    assert {row["split"] for row in week.truth} == {"train"}


def test_the_same_seed_gives_the_same_bytes(week: Delivered, tmp_path: Path) -> None:
    again = delivered(tmp_path / "again", "delivery")
    assert again.files == week.files
    assert again.manifest == week.manifest
    assert again.table.equals(week.table)
    other = delivered(tmp_path / "other", "delivery", seed=8)
    assert not {row["id"] for row in other.of_kind("clean")} & {row["id"] for row in week.of_kind("clean")}


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        deliver(tmp_path, part="delivery")
    with pytest.raises(InputError, match="not an empty folder"):
        deliver(tmp_path / "notes.txt", part="delivery")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_truth_survives_its_file(stock: Delivered, tmp_path: Path) -> None:
    path = tmp_path / "kept" / "truth.parquet"
    write_truth(stock.table, path)
    assert read_truth(path).equals(stock.table)
    assert stock.table.schema == TRUTH_SCHEMA
    assert path.stat().st_size < 60_000


@pytest.mark.parametrize("content", [None, b"", b"no parquet at all"])
def test_a_missing_or_foreign_truth_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "truth.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"truth\.parquet: not a truth table"):
        read_truth(path)
