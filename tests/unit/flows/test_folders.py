"""Trees of folders as suppliers send them: levels are understood or refused, and every file is accounted for."""

from __future__ import annotations

import errno
import multiprocessing
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flows.delivery.accounts import account, class_splits, sentences
from flows.delivery.build import IntakeReport, build_version
from flows.delivery.folders import SYSTEM, split_of
from flows.delivery.rows import read_delivery
from flows.errors import AccountsDiffer, BadDelivery
from models.data.manifest import class_counts, read_manifest, read_table
from tests.deliveries import photo

TWO = ("Milk", "Bread")


def tree(root: Path, *folders: str, first_seed: int = 0) -> Path:
    """Writes a photo into each folder."""
    for seed, folder in enumerate(folders, first_seed):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / f"{seed}.png").write_bytes(photo(seed))
    return root


def places(source: Path) -> set[tuple[str, str]]:
    """Labels and splits that the delivery is read as."""
    rows = read_delivery(source).rows
    return set(zip(rows["label"].to_pylist(), rows["split"].to_pylist(), strict=True))


def under(*splits: str, pattern: str = "{split}/{label}") -> list[str]:
    return [pattern.format(split=split, label=label) for split in splits for label in TWO]


@pytest.mark.parametrize(
    "pattern",
    [
        "{split}/{label}",
        "{label}/{split}",
        "images/{split}/{label}",
        "{split}/images/{label}",
        "{split}/{label}/images",
        "shop 2024/photos/{split}/{label}",
    ],
)
@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Training", "Validation", "Test"),
        ("TRAIN", "valid", "Testing"),
        ("train_set", "dev", "hold-out"),
        ("Training Set", "Validation Set", "Test Set"),
        ("train2017", "val2017", "test2017"),
        ("training_images", "valid", "evaluation"),
    ],
)
def test_a_level_of_split_folders_gives_the_split(
    tmp_path: Path, pattern: str, train: str, val: str, test: str
) -> None:
    source = tree(tmp_path, *under(train, val, test, pattern=pattern))
    assert places(source) == {(label, split) for label in TWO for split in ("train", "val", "test")}


@pytest.mark.parametrize(
    "folders", [TWO, ("shop/Milk", "shop/Bread"), ("a/b/c/Milk", "a/b/c/Bread"), ("Milk/x", "Bread/x")]
)
def test_a_level_of_class_folders(tmp_path: Path, folders: tuple[str, ...]) -> None:
    assert places(tree(tmp_path, *folders)) == {("Milk", ""), ("Bread", "")}


def test_one_new_class_for_a_workspace_that_has_others(tmp_path: Path) -> None:
    assert places_of(tree(tmp_path / "1", "Milk"), known=TWO) == {("Milk", "")}
    assert places_of(tree(tmp_path / "2", "shop/Milk"), known=TWO) == {("Milk", "")}
    assert places_of(tree(tmp_path / "3", "Training/Milk"), known=TWO) == {("Milk", "train")}


def places_of(source: Path, *, known: tuple[str, ...]) -> set[tuple[str, str]]:
    rows = read_delivery(source, known=known).rows
    return set(zip(rows["label"].to_pylist(), rows["split"].to_pylist(), strict=True))


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (
            ("Training/Milk", "Test/Milk", "Bread"),
            r"mixes split folders \(Test, Training\) and class folders \('Bread'\)",
        ),
        (("Milk", "Bread", "test"), r"mixes split folders \(test\) and class folders \('Bread'\) on one level"),
        (("Milk", "Bread", "val", "Train"), r"mixes split folders \(Train, val\) and class"),
        (("shop/Milk", "shop/Bread", "Train/Train"), r"mixes split folders \(Train/Train\) and class folders \('shop/"),
        (("Train/Milk", "Train/Bread", "Train/val"), r"mixes split folders \(Train/val\) and class"),
        (("Milk/train", "Bread/test", "test/test"), "mixes split folders"),
        (("train/Milk", "train/Bread", "val"), "the photos of split folder val/ lie in no class folder"),
        (("Milk", "Bread", "Train/Train"), "the photos of split folder Train/Train/ lie in no class folder"),
        (("Train/Train/Milk", "Train/Train/Bread"), "in several levels of split folders: Train/Train/Bread/"),
        (("Milk/front", "Milk/back", "Bread/front"), "in several levels of folders, each of which may name the class"),
        (("Drinks/Milk", "Food/Bread"), "in several levels of folders, each of which may name the class: Drinks/Milk/"),
        (("Drinks/Cold/Milk", "Food/Warm/Bread"), "several levels of folders"),
        (("Milk", "Bread/fresh"), r"in folders of different depth: Bread/fresh/ \(1 photos\), Milk/ \(1 photos\)"),
        (("train/Milk", "train/Food/Bread"), "in folders of different depth"),
        (("train/Milk/test", "train/Bread/test"), "mixes|several levels|no class"),
        ((".",), "in no class folder: ./ "),
        (("train", "test"), "in no class folder: test/ "),
        (("images/train", "images/test"), "in no class folder: images/test/ "),
        (("images",), "in no class folder"),
    ],
)
def test_levels_that_are_not_understood_are_refused_with_the_tree(
    tmp_path: Path, folders: tuple[str, ...], message: str
) -> None:
    if folders == ("train/Milk/test", "train/Bread/test"):
        folders = ("train/Milk/test", "train/Bread/val")
    with pytest.raises(BadDelivery, match=message) as refusal:
        read_delivery(tree(tmp_path, *folders))
    assert "give one folder per class" in str(refusal.value)
    assert "manifest.csv with the columns path, label and split" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_refusal_names_few_of_many_folders(tmp_path: Path) -> None:
    with pytest.raises(BadDelivery, match="and 46 more folders") as refusal:
        read_delivery(tree(tmp_path, *(f"group {number % 5}/class {number}" for number in range(50))))
    assert len(str(refusal.value)) < 500


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("Training", "train"),
        ("test-set", "test"),
        ("Dev", "val"),
        ("Train 2", ""),
        ("Tests", ""),
        ("Data", ""),
        ("Trainers", ""),
    ],
)
def test_names_of_splits(name: str, split: str) -> None:
    assert split_of(name) == split


def test_what_systems_leave_behind_is_counted_and_not_read(tmp_path: Path) -> None:
    source = tree(tmp_path, "Training/Milk", "Training/Bread", "Test/Milk", "__MACOSX/Training/Milk", ".cache/x")
    for path in (".DS_Store", "Training/Thumbs.db", "Training/Milk/._0.png", "Test/Milk/desktop.ini"):
        (source / path).write_bytes(b"x")
    delivery = read_delivery(source)
    assert (len(delivery.rows), delivery.seen) == (3, 7)
    assert delivery.passed.files == {SYSTEM: 4}
    assert delivery.passed.closed == [".cache", "__MACOSX"]


def test_other_files_are_counted_by_suffix_and_named(tmp_path: Path) -> None:
    source = tree(tmp_path, *TWO)
    for path in ("README.md", "Milk/labels.txt", "Milk/more.TXT", "Bread/a.json"):
        (source / path).write_text("text")
    (source / "Milk" / "no suffix").write_bytes(photo(50))
    (source / "Milk" / "odd.jpg_large").write_bytes(photo(51))
    (source / "Milk" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    report = build(source, tmp_path / "out")
    assert report.accounts.files == {"taken": 4, "duplicate": 0, "quarantined": 1, "not a photo": 4, SYSTEM: 0}
    assert report.accounts.seen == 9
    assert report.accounts.not_photos == {
        ".txt": {"files": 2, "example": "Milk/labels.txt"},
        ".md": {"files": 1, "example": "README.md"},
        ".json": {"files": 1, "example": "Bread/a.json"},
    }
    assert list(report.quarantined) == [
        "photo: not a picture in a format that can be read (JPEG, PNG, WEBP, GIF, BMP, TIFF)"
    ]


def test_a_folder_without_photos_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(BadDelivery, match=r"holds no photo, but other files \(1 .txt\)"):
        read_delivery(tmp_path)


def test_links_to_folders_are_no_photos(tmp_path: Path) -> None:
    elsewhere, source = tree(tmp_path / "e", *TWO), tmp_path / "s"
    source.mkdir()
    for label in TWO:
        (source / label).symlink_to(elsewhere / label)
    with pytest.raises(
        BadDelivery, match=r"holds no photo, but links to folders \(Bread, Milk\), which are not followed"
    ):
        read_delivery(source)


def test_loose_photos_of_a_split_are_refused_one_by_one(tmp_path: Path) -> None:
    delivery = read_delivery(tree(tmp_path, *under("train", "val"), "train"))
    assert ([str(row) for row in delivery.refused], len(delivery.rows)) == (["train/4.png, field label: is blank"], 4)


def build(source: Path, out: Path, *, base: Path | None = None) -> IntakeReport:
    return build_version(source, base=base, out=out)


def test_every_file_is_accounted_for(tmp_path: Path) -> None:
    source = tree(tmp_path / "s", *(f"{label}/sub" for label in TWO for _ in range(5)))
    shelf = source / "Milk" / "sub"
    (shelf / "again.png").write_bytes(photo(0))
    (source / "Bread" / "sub" / "milk too.png").write_bytes(photo(1))
    (shelf / "empty.png").write_bytes(b"")
    (shelf / "gone.png").symlink_to("nowhere.png")
    (shelf / "loop").symlink_to(source)
    (shelf / "self.png").symlink_to("self.png")
    os.mkfifo(shelf / "pipe.png")
    (source / "loose.png").write_bytes(photo(70))
    (source / "notes.txt").write_text("")
    (shelf / ".hidden.png").write_bytes(photo(71))
    report = build(source, tmp_path / "v")
    accounts = report.accounts
    assert accounts.files == {"taken": 9, "conflict": 1, "duplicate": 2, "quarantined": 6, "not a photo": 1, SYSTEM: 1}
    assert accounts.seen == sum(accounts.files.values()) == 20
    again = build(source, tmp_path / "w", base=tmp_path / "v").accounts
    assert again.files == {"taken": 0, "duplicate": 12, "quarantined": 6, "not a photo": 1, SYSTEM: 1}
    reasons = {row["path"]: row["reason"] for row in read_table(tmp_path / "v", name="quarantine").to_pylist()}
    assert reasons["Milk/sub/gone.png"] == "no such file"
    assert reasons["Milk/sub/self.png"] == f"cannot be read ({os.strerror(errno.ELOOP)})"
    assert reasons["Milk/sub/pipe.png"] == "is not a file"


def test_rows_that_name_a_file_twice_or_a_missing_one_are_counted(tmp_path: Path) -> None:
    source = tree(tmp_path / "s", *TWO)
    (source / "manifest.csv").write_text("path,label\nMilk/0.png,a\nMilk/0.png,a\nBread/1.png,b\nnone.png,b\n")
    accounts = build(source, tmp_path / "v").accounts
    assert (accounts.seen, accounts.repeated) == (4, 1)
    assert accounts.files == {"taken": 2, "duplicate": 1, "quarantined": 1, "not a photo": 0, SYSTEM: 0}
    splits = class_splits(class_counts(read_table(tmp_path / "v", name="labels")))
    assert "  1 rows name a file that another row names too" in sentences(vars(accounts), splits)


def test_files_that_are_not_accounted_for_are_an_error(tmp_path: Path) -> None:
    delivery = read_delivery(tree(tmp_path, *TWO))
    account(delivery, np.array(["", ""], object), usable=2, quarantined=0)
    with pytest.raises(AccountsDiffer, match="3 files were listed, but 2 are accounted for"):
        account(replace(delivery, seen=3), np.array(["", ""], object), usable=2, quarantined=0)


def as_nobody(source: Path, answer: multiprocessing.queues.Queue[str]) -> None:
    os.setuid(65534)
    try:
        delivery = read_delivery(source)
        answer.put(f"{len(delivery.rows)} {[row.reason for row in delivery.refused]}")
    except BadDelivery as error:
        answer.put(str(error))


def read_as_nobody(source: Path) -> str:
    """Answer to a user without rights."""
    if os.getuid():
        pytest.skip("only root can take another user's place")
    for folder in source.parents:
        if folder != Path("/tmp") and folder.owner() == "root" and len(folder.parts) > 2:
            folder.chmod(0o755)
    context = multiprocessing.get_context("fork")
    answer: multiprocessing.queues.Queue[str] = context.Queue()
    child = context.Process(target=as_nobody, args=(source, answer))
    child.start()
    found = answer.get(timeout=60)
    child.join()
    return found


@pytest.mark.parametrize("closed", ["Bread", "."])
def test_a_folder_that_may_not_be_read_refuses_the_delivery(tmp_path: Path, closed: str) -> None:
    source = tree(tmp_path / "s", *TWO, "Eggs")
    (source / closed).chmod(0o600)
    message = read_as_nobody(source)
    (source / closed).chmod(0o755)
    assert f"{source / closed}: the folder cannot be read (Permission denied)".replace("/.", "") in message


def test_an_error_of_the_disk_refuses_the_delivery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, real = tree(tmp_path, *TWO), os.scandir

    def scandir(folder: str) -> object:
        if str(folder).endswith("Bread"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), folder)
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(BadDelivery, match=r"Bread: the folder cannot be read \(Input/output error\), so its photos"):
        read_delivery(source)


def test_classes_and_splits_are_counted(tmp_path: Path) -> None:
    source = tree(tmp_path / "s", *under("train", "test"), "train/Eggs", "test/Rice", "train/Milk", "val/Milk")
    report = build(source, tmp_path / "v")
    manifest = read_manifest(tmp_path / "v")
    assert report.splits == {
        "classes": 4,
        "photos": dict(Counter(manifest.split[manifest.kept])),
        "classes_with": {"train": 3, "val": 1, "test": 3},
        "without": {"train": {"number": 1, "first": ["Rice"]}, "test": {"number": 1, "first": ["Eggs"]}},
    }
    assert sentences(vars(report.accounts), report.splits)[-3:] == [
        "4 classes; photos in train 4 of 3 classes, val 1 of 1 classes, test 3 of 3 classes",
        "  without a train photo 1: Rice",
        "  without a test photo 1: Eggs",
    ]


def test_a_report_names_few_of_many_classes(tmp_path: Path) -> None:
    source = tree(tmp_path / "s", *(f"test/class {number:02}" for number in range(30)), "train/Milk")
    report = build(source, tmp_path / "v")
    assert report.splits["without"]["train"]["number"] == 30
    assert len(report.splits["without"]["train"]["first"]) == 20
    (line,) = (each for each in report.warnings if "train photo" in each)
    assert line.startswith("30 classes have no train photo and cannot be recognised: 'class 00', 'class 01', ")
