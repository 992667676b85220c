"""Reading of deliveries as suppliers send them."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.delivery.rows import Delivery, read_delivery
from flows.errors import BadDelivery
from tests.deliveries import deliver


def manifest(folder: Path, text: str, *, photos: tuple[str, ...] = ("a.png", "b.png")) -> Path:
    folder.mkdir(exist_ok=True)
    for name in photos:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    (folder / "manifest.csv").write_text(text, encoding="utf-8")
    return folder


def columns(delivery: Delivery, *names: str) -> list[tuple[str, ...]]:
    return list(zip(*(delivery.rows[name].to_pylist() for name in names), strict=True))


def test_a_folder_per_class(tmp_path: Path) -> None:
    deliver(tmp_path, {'Kid\'s "best"  cup ': 2, "Müsli": 1})
    (tmp_path / "Müsli" / ".DS_Store").write_text("")
    delivery = read_delivery(tmp_path)
    assert columns(delivery, "label", "split", "source") == [
        ('Kid\'s "best" cup', "", tmp_path.name),
        ('Kid\'s "best" cup', "", tmp_path.name),
        ("Müsli", "", tmp_path.name),
    ]
    assert delivery.folder == tmp_path
    assert all((tmp_path / path).is_file() for (path,) in columns(delivery, "path"))
    assert delivery.refused == []


def test_split_folders(tmp_path: Path) -> None:
    for split in ("train", "test"):
        deliver(tmp_path / split, {"a": 1, "b": 1})
    assert columns(read_delivery(tmp_path), "split", "label") == [
        ("test", "a"), ("test", "b"), ("train", "a"), ("train", "b")
    ]  # fmt: skip
    deliver(tmp_path, {"c": 1})
    with pytest.raises(BadDelivery, match="mixes split folders"):
        read_delivery(tmp_path)


def test_links_out_of_the_folder_and_loose_photos_are_refused(tmp_path: Path) -> None:
    source = deliver(tmp_path / "source", {"a": 1, "b": 1})
    deliver(tmp_path / "outside", {"c": 1})
    (source / "a" / "link.png").symlink_to(tmp_path / "outside" / "c" / "photo 0.png")
    (source / "linked").symlink_to(tmp_path / "outside" / "c")
    (source / "loose.png").write_bytes(b"")
    refused = {(row.path, row.field, row.reason) for row in read_delivery(source).refused}
    assert refused == {
        ("a/link.png", "path", "leaves the folder of the delivery through a link"),
        ("linked", "path", "leaves the folder of the delivery through a link"),
        ("loose.png", "label", "is blank"),
    }


def test_a_manifest_with_all_columns(tmp_path: Path) -> None:
    source = manifest(tmp_path / "s", '\ufeffpath,label,split,source\n"a.png"," Red\t mug ",train,web\nb.png,Blue,,\n')
    rows = read_delivery(source).rows
    assert columns(read_delivery(source), "path", "label", "split", "source") == [
        ("a.png", "Red mug", "train", "web"),
        ("b.png", "Blue", "", "s"),
    ]
    assert read_delivery(source / "manifest.csv").rows == rows
    table = pa.table(
        {"path": ["a.png", "b.png"], "label": ["Red mug", "Blue"], "split": ["train", None], "source": ["web", None]}
    )
    (source / "manifest.csv").unlink()
    pq.write_table(table, source / "manifest.parquet")
    assert read_delivery(source).rows == rows


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../b.png", "leaves the folder"),
        ("/etc/hosts", "leaves the folder"),
        ("x/../../b.png", "leaves the folder"),
        ("none.png", "no such file"),
        ("", "is blank"),
        ("sub", "not a file"),
        ("a\0b", "not a UTF-8 name"),
    ],
)
def test_bad_paths_are_refused_one_by_one(tmp_path: Path, path: str, reason: str) -> None:
    source = manifest(
        tmp_path / "s", f"path,label\na.png,a\nb.png,b\n{path},c\n", photos=("a.png", "b.png", "sub/c.png")
    )
    delivery = read_delivery(source)
    assert len(delivery.rows) == 2
    (refused,) = delivery.refused
    assert (refused.label, refused.field) == ("c", "path")
    assert reason in refused.reason


@pytest.mark.parametrize("label", ["", "  ", "\x07bell"])
def test_bad_labels_are_refused(tmp_path: Path, label: str) -> None:
    source = manifest(tmp_path / "s", f"path,label\na.png,a\nb.png,b\na.png,{label}\n")
    (refused,) = read_delivery(source).refused
    assert refused.field == "label"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,price\n", r"unknown column 'price'; known are path, label, split, source"),
        ("path\n", "column 'label' is missing"),
        ("", "column 'path' is missing"),
        ("path,label,split\na.png,a,training\n", r"row 1, field split: 'training' is unknown; use train, val, test"),
        ("path,label\na.png,a,b\n", "row 1 has another number of cells"),
        ("path,label\na.png,a\nb.png,A\n", "'A' and 'a' differ only in case or white space"),
        ("path,label\na.png,red mug\nb.png,redmug\n", "'red mug' and 'redmug' differ only"),
        ("path,label\na.png,a\n", "all photos are of one class, 'a'"),
        ("path,label\n", "is empty"),
        (
            "path,label\nx.png,a\ny.png,b\n",
            "no usable row, all 2 were refused; the first is 'x.png', field path: no such file",
        ),
    ],
)
def test_doubtful_deliveries_are_refused_whole(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadDelivery, match=message):
        read_delivery(manifest(tmp_path / "s", text))


def test_labels_are_compared_with_those_of_the_workspace(tmp_path: Path) -> None:
    source = manifest(tmp_path / "s", "path,label\na.png,a\n")
    assert len(read_delivery(source, known=["a", "b"]).rows) == 1
    with pytest.raises(BadDelivery, match="'A' and 'a' differ only"):
        read_delivery(source, known=["A", "b"])


def test_not_a_delivery(tmp_path: Path) -> None:
    for source, message in ((tmp_path / "none", "no such file"), (tmp_path, "is empty")):
        with pytest.raises(BadDelivery, match=message):
            read_delivery(source)
    (tmp_path / "manifest.csv").write_bytes(b"path,label\n\xff\xfe,a\n")
    with pytest.raises(BadDelivery, match="not a CSV file in UTF-8"):
        read_delivery(tmp_path)
    (tmp_path / "manifest.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadDelivery, match="not a Parquet file"):
        read_delivery(tmp_path / "manifest.parquet")
    with pytest.raises(BadDelivery, match="holds both"):
        read_delivery(tmp_path)


def test_names_that_are_not_unicode_are_refused(tmp_path: Path) -> None:
    deliver(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "a" / os.fsdecode(b"\xff.png")).write_bytes(b"")
    (refused,) = read_delivery(tmp_path).refused
    assert (refused.path, refused.field, refused.reason) == ("a/?.png", "path", "is not a UTF-8 name")
