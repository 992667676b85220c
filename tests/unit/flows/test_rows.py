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
        ("photos\\b.png", "no such file; separate folders by /"),
        ("https://shop/b.png", "no such file; give a path in the delivery"),
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


@pytest.mark.parametrize(
    ("label", "fault"),
    [
        ("", "field label: is blank"),
        (" \u200b ", "field label: is blank"),
        ("\x07bell", r"field label '\u0007bell': holds a control character (\u0007); leave it out"),
        ("4.00638E+12", "field label '4.00638E+12': is a number that a spreadsheet shortened; write labels as text"),
    ],
)
def test_bad_labels_are_refused(tmp_path: Path, label: str, fault: str) -> None:
    source = manifest(tmp_path / "s", f"path,label\na.png,a\nb.png,b\na.png,{label}\n")
    (refused,) = read_delivery(source).refused
    assert (refused.field, str(refused)) == ("label", f"a.png, {fault}")


def parquet(folder: Path, labels: object) -> Path:
    """A manifest of as many photos as there are labels."""
    folder.mkdir(exist_ok=True)
    paths = [f"{number}.png" for number in range(len(labels))]  # type: ignore[arg-type]  # a list or an array
    for name in paths:
        (folder / name).write_bytes(name.encode())
    pq.write_table(pa.table({"path": paths, "label": labels}), folder / "manifest.parquet")
    return folder


def test_numbers_are_the_texts_that_they_stand_for(tmp_path: Path) -> None:
    barcodes = pa.array([1.0, 2.0, 4006381333931.0], pa.float32())
    [refused] = read_delivery(parquet(tmp_path / "b", barcodes)).refused
    assert refused.fault.startswith(
        "field label '4006381355008.0': is of type float32, which rounds whole numbers from"
    )
    labels = pa.array([1.0, 2.0, float("nan"), None, 2.5, 1e300])
    delivery = read_delivery(parquet(tmp_path / "s", labels), known=["1", "7"])
    assert columns(delivery, "label") == [("1",), ("2",)]
    assert [str(row) for row in delivery.refused] == [
        "2.png, field label 'nan': is missing (NaN); write it as text, or leave the row out",
        "3.png, field label: is blank",
        "4.png, field label '2.5': is of type float; write it as text",
        "5.png, field label '1e+300': is of type float, which rounds whole numbers from 9007199254740992 on; write it as text",
    ]
    labels = pa.array(["007", "NA", "nan", "None", "1e5"])
    assert columns(read_delivery(parquet(tmp_path / "t", labels)), "label") == [
        ("007",), ("NA",), ("nan",), ("None",), ("1e5",)
    ]  # fmt: skip


def test_labels_of_the_workspace_win(tmp_path: Path) -> None:
    """A data version of an earlier release may hold labels that are not folded."""
    labels = pa.array(["Beko Cola", "Beko\u00a0Cola\u00ad", "Elva Tea", "x" * 600, "Alma\u00adMilk", "\u200b"])
    known = ["Beko Cola\u200b", "Elva Tea", "Elva Tea\u200b", "x" * 600]
    delivery = read_delivery(parquet(tmp_path / "s", labels), known=known)
    assert columns(delivery, "label") == [
        ("Beko Cola\u200b",), ("Beko Cola\u200b",), ("Elva Tea",), ("x" * 600,), ("AlmaMilk",)
    ]  # fmt: skip
    assert [row.label for row in delivery.refused] == [""]
    assert len(read_delivery(parquet(tmp_path / "t", pa.array(["A", "a"])), known=["A", "a"]).rows) == 2


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
        ("path,label\na.png,1\nb.png,1.0\n", "labels '1' and '1.0' are the same number; use one spelling"),
        ("path,label\na.png,007\nb.png,7\n", "labels '007' and '7' are the same number; use one spelling"),
        ("path,label\na.png,\uff21\nb.png,A\n", "differ only in the form of their letters"),
        ("path,label,Label\na.png,a,b\n", "column 'label' occurs 2 times \\('label', 'Label'\\); keep one"),
        ("path,label\na.png,a\n", "all photos are of one class, 'a'"),
        (
            "path,label\na.png,1\nnone.png,2\nb.png,\n",
            "of one class, '1'; .*; 2 other rows were refused; the first is 'none.png', field path: no such file",
        ),
        ("path,label\n", r"manifest\.csv has no rows; write one with path and label for each photo"),
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
    with pytest.raises(BadDelivery, match="'A' and 'a' differ only in case or white space"):
        read_delivery(source, known=["A", "b"])
    with pytest.raises(BadDelivery, match=r"'a\\u200b' and 'a' differ only in characters that cannot be seen"):
        read_delivery(source, known=["\ufeffa", "a\u200b"])


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
    with pytest.raises(
        BadDelivery, match=r"holds several manifests \(manifest\.csv, manifest\.parquet\); give the path"
    ):
        read_delivery(tmp_path)


@pytest.mark.parametrize("name", ["manifest.jsonl", "Manifest.CSV", "MANIFEST.Parquet"])
def test_a_manifest_in_a_folder_is_read_in_any_case(tmp_path: Path, name: str) -> None:
    deliver(tmp_path, {"a": 1, "b": 1})
    paths = ["a/photo 0.png", "b/photo 1.png"]
    if name.endswith("Parquet"):
        pq.write_table(pa.table({"path": paths, "label": ["x", "y"]}), tmp_path / name)
    elif name.endswith("CSV"):
        (tmp_path / name).write_text(f"path,label\n{paths[0]},x\n{paths[1]},y\n")
    else:
        rows = zip(paths, "xy", strict=True)
        (tmp_path / name).write_text("".join(f'{{"path": "{path}", "label": "{label}"}}\n' for path, label in rows))
    assert columns(read_delivery(tmp_path), "path", "label") == [(paths[0], "x"), (paths[1], "y")]


def test_a_table_without_rows_says_so(tmp_path: Path) -> None:
    source = parquet(tmp_path / "s", pa.array([], pa.string())) / "manifest.parquet"
    with pytest.raises(BadDelivery, match=r"manifest\.parquet has no rows"):
        read_delivery(source)


def test_names_that_are_not_unicode_are_refused(tmp_path: Path) -> None:
    deliver(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "a" / os.fsdecode(b"\xff.png")).write_bytes(b"")
    (refused,) = read_delivery(tmp_path).refused
    assert (refused.path, refused.field, refused.reason) == ("a/?.png", "path", "is not a UTF-8 name")
