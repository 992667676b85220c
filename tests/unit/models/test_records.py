"""Tables that users write, in every form in which they come."""

from __future__ import annotations

import datetime
import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.data.records import as_text, guarded, read_rows, short, text_of
from models.errors import BadTable

KNOWN = ("path", "label", "split")


def rows_of(path: Path, *, known: tuple[str, ...] | None = KNOWN) -> list[tuple[int, dict[str, Any]]]:
    return list(read_rows(path, required=("path", "label"), known=known))


def written(path: Path, content: bytes | str | pa.Table) -> Path:
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        "path,label\na.jpg,Alma Milk\nb.jpg,1.0\n",
        "\ufeffpath,label\r\na.jpg,Alma Milk\r\nb.jpg,1.0\r\n",
        "path;label\na.jpg;Alma Milk\nb.jpg;1.0",
        "path\tlabel\na.jpg\tAlma Milk\nb.jpg\t1.0\n",
        '" Path ",\ufeffLABEL\n"a.jpg","Alma Milk"\n"b.jpg","1.0"\n',
        "\n\nlabel,path\nAlma Milk,a.jpg\n1.0,b.jpg\n",
    ],
)
def test_forms_of_csv(tmp_path: Path, text: str) -> None:
    expected = [(1, {"path": "a.jpg", "label": "Alma Milk"}), (2, {"path": "b.jpg", "label": "1.0"})]
    assert rows_of(written(tmp_path / "m.csv", text)) == expected
    assert rows_of(written(tmp_path / "m.TXT", text)) == expected


def test_what_csv_may_hold(tmp_path: Path) -> None:
    text = 'path,label\n"a,b;c.jpg","Red\nmug"\n\n007,"Kid\'s ""best"" cup"\n\'=1+1,\'plain\n'
    assert rows_of(written(tmp_path / "m.csv", text)) == [
        (1, {"path": "a,b;c.jpg", "label": "Red\nmug"}),
        (3, {"path": "007", "label": 'Kid\'s "best" cup'}),
        (4, {"path": "=1+1", "label": "'plain"}),
    ]
    assert (guarded("=1+1"), guarded("plain")) == ("'=1+1", "plain")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path,label\na.jpg,Caf\xe9\n", r"not a CSV file in UTF-8 \(row 1 has the byte 0xe9\); save it as UTF-8"),
        ("path,label\n".encode("utf-16"), r"not a CSV file in UTF-8 \(the header has the byte 0xff\)"),
        ("path,label\na.jpg,a\nb.jpg\n", r"row 2 has another number of cells than the header \(1, not 2\)"),
        ("path,label\na.jpg,a,b\n", r"row 1 has another number of cells than the header \(3, not 2\); quote cells"),
        ('path,label\na.jpg,a\nb.jpg,"b\n', r"not a CSV file in row 2 \(unexpected end of data\); correct its quotes"),
        ('path,label\n"a"b,a\n', r"not a CSV file in row 1 \(.*\); correct its quotes"),
        ("path,label\na.jpg," + "x" * 200_000, r"not a CSV file in row 1 \(field larger than field limit"),
        ("path,lable\n", "unknown column 'lable'; known are path, label, split"),
        ("path,split\n", "column 'label' is missing; it has path, split"),
        ("", "column 'path' is missing; it has none"),
        ("path,label,label\n", r"column 'label' occurs 2 times \('label', 'label'\); keep one"),
        ("path,Label,label\n", r"column 'label' occurs 2 times \('Label', 'label'\); keep one"),
        ("path, label,label\u200b,LABEL\n", r"column 'label' occurs 3 times \(' label', 'label\\u200b', 'LABEL'\)"),
        ("path\tpath\tlabel\n", r"column 'path' occurs 2 times"),
    ],
)
def test_csv_files_that_are_refused(tmp_path: Path, content: bytes | str, message: str) -> None:
    file = written(tmp_path / "m.csv", content)
    with pytest.raises(BadTable, match=message) as refused:
        rows_of(file)
    assert str(refused.value).startswith(f"{file}: ")


TEXTS = ["1", "2"]


@pytest.mark.parametrize(
    "labels",
    [
        pa.array(TEXTS),
        pa.array(TEXTS, pa.large_string()),
        pa.array(TEXTS, pa.string_view()),
        pa.array([b"1", b"2"]),
        pa.array([b"1", b"2"], pa.large_binary()),
        pa.array([b"1", b"2"], pa.binary(1)),
        pa.array(TEXTS).dictionary_encode(),
        pa.array([1, 2], pa.int8()),
        pa.array([1, 2], pa.uint64()),
        pa.array([1.0, 2.0]),
        pa.array([1.0, 2.0], pa.float32()),
        pa.array(np.array([1, 2], np.float16)),
        pa.array([1.0, 2.0]).dictionary_encode(),
        pa.array([Decimal("1.00"), Decimal(2)], pa.decimal128(5, 2)),
    ],
    ids=lambda column: str(column.type),
)
def test_types_of_parquet_that_are_texts_or_whole_numbers(tmp_path: Path, labels: pa.Array) -> None:
    file = written(tmp_path / "m.parquet", pa.table({"Label": labels, "path": [b"a.jpg", b"b.jpg"]}))
    assert [as_text(record["label"]) for _, record in rows_of(file)] == [("1", ""), ("2", "")]
    assert [as_text(record["path"])[0] for _, record in rows_of(file)] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(("kind", "exact"), [(pa.float16(), 2**11), (pa.float32(), 2**24), (pa.float64(), 2**53)])
@pytest.mark.parametrize("encoded", [False, True])
def test_floats_of_parquet_are_labels_as_far_as_they_are_exact(
    tmp_path: Path, kind: pa.DataType, exact: int, encoded: bool
) -> None:
    labels = pa.array(np.array([exact - 1, exact, exact + 1, np.nan, 0], kind.to_pandas_dtype()))
    labels = pa.concat_arrays([labels, pa.nulls(1, kind)])
    labels = labels.dictionary_encode() if encoded else labels
    file = written(tmp_path / "m.parquet", pa.table({"path": ["a.jpg"] * 6, "label": labels}))
    texts = [as_text(record["label"]) for _, record in rows_of(file)]
    assert [text for text, _ in texts] == [str(exact - 1), "", "", "", "0", ""]
    assert [reason.partition(";")[0] for _, reason in texts][4:] == ["", ""]
    assert f"rounds whole numbers from {exact} on; write it as text" in texts[2][1]
    (_, _), (number, record), *_ = rows_of(file)
    shown = str(float(exact)).replace("+", r"\+")
    with pytest.raises(BadTable, match=rf"row 2, field label: {shown} is of type float"):
        text_of(f"row {number}", record, "label")


@pytest.mark.parametrize(
    ("labels", "value", "kind"),
    [
        (pa.array([["a"], ["b"]]), '[ [ "a" ] ]', "list<"),
        (pa.array([{"a": 1}, None]), "-- is_valid: all not null", "struct<a: int64>"),
        (pa.array([datetime.date(2026, 1, 2)] * 2), "[ 2026-01-02 ]", "date32"),
        (pa.array([1, 2], pa.timestamp("ns")), "[ 1970-01-01 00:00:00.000000001 ]", "timestamp"),
        (pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())), "", "map<"),
    ],
)
@pytest.mark.parametrize("name", ["label", "path"])
def test_other_types_of_parquet_are_refused(tmp_path: Path, labels: pa.Array, value: str, kind: str, name: str) -> None:
    table = pa.table({"path": ["a.jpg", "b.jpg"], "label": TEXTS})
    file = written(tmp_path / "m.parquet", table.set_column(table.column_names.index(name), name, labels))
    with pytest.raises(BadTable) as refused:
        rows_of(file)
    message = str(refused.value)
    assert message.startswith(f"{file}: row 1, column '{name}': {value}")
    assert f"is of type {kind}" in message
    assert message.endswith("; write the column as text")


def test_other_parquet_files_that_are_refused(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array(TEXTS)] * 3, names=["path", "label", "label"])
    for content, message in (
        (twice, r"column 'label' occurs 2 times"),
        (twice.rename_columns(["path", "label", "Label "]), r"column 'label' occurs 2 times \('label', 'Label '\)"),
        (pa.table({"path": TEXTS, "label": TEXTS, "price": TEXTS}), "unknown column 'price'"),
        (pa.table({"path": TEXTS}), "column 'label' is missing"),
        (b"PAR1", "not a Parquet file that can be read"),
    ):
        with pytest.raises(BadTable, match=message):
            rows_of(written(tmp_path / "m.parquet", content))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "is missing (NaN); write it as text, or leave the row out"),
        (np.float16("nan"), "is missing (NaN); write it as text, or leave the row out"),
        (Decimal("NaN"), "is missing (NaN); write it as text, or leave the row out"),
        (1.5, "is of type float; write it as text"),
        (float("inf"), "is of type float; write it as text"),
        (2.0**53, "is of type float, which rounds whole numbers from 9007199254740992 on; write it as text"),
        (
            np.float32(4006381333931),
            "is of type float32, which rounds whole numbers from 16777216 on; write it as text",
        ),
        (np.float16(-2048), "is of type float16, which rounds whole numbers from 2048 on; write it as text"),
        (Decimal("1.5"), "is of type decimal; write it as text"),
        (Decimal("Infinity"), "is of type decimal; write it as text"),
        (True, "is of type bool; write it as text"),
        (["a"], "is of type list; write it as text"),
        (b"Caf\xe9", "is not UTF-8; write it as text"),
    ],
)
def test_values_that_are_not_texts(value: Any, reason: str) -> None:
    assert as_text(value) == ("", reason)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), ("", ""), ("nan", "nan"), ("007", "007"), (-3.0, "-3"),
     (2.0**53 - 1, "9007199254740991"), (10**30, "1" + "0" * 30)],
)  # fmt: skip
def test_values_that_are_texts(value: Any, text: str) -> None:
    assert as_text(value) == (text, "")


def test_values_are_shown_short() -> None:
    assert (short("a\u200b"), short(1.5)) == (r"'a\u200b'", "1.5")
    assert len(short(list(range(100)))) == 60


def test_json_lines(tmp_path: Path) -> None:
    lines = ['{"path": "a.jpg", "label": "Müsli"}', "", '{"label": 1.0, "path": "b.jpg", "split": null}']
    file = written(tmp_path / "m.jsonl", "\ufeff" + "\r\n".join(lines))
    assert rows_of(file) == [
        (1, {"path": "a.jpg", "label": "Müsli"}),
        (3, {"path": "b.jpg", "label": 1.0, "split": None}),
    ]
    file = written(tmp_path / "n.jsonl", json.dumps({"path": "a", "label": {"a": 1}}))
    [(_, record)] = rows_of(file)
    assert as_text(record["label"]) == ("", "is of type object; write it as text")
    assert short(record["label"]) == "{'a': 1}"
    written(file, '{"path": "a", "label": ' + "[" * 450 + "]" * 450 + "}")
    [(_, record)] = rows_of(file)
    assert short(record["label"])
    written(file, '{"path": "a", "label": ' + '{"a":' * 450 + "1" + "}" * 450 + "}")
    [(_, record)] = rows_of(file)
    assert short(record["label"]) == "a deeply nested value"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"path": "a", "label": "x", "label": "y"}', r"column 'label' occurs 2 times \('label', 'label'\); keep one \(row 1\)"),
        ('{"path": "a", "label": "x", " Label": "y"}', r"column 'label' occurs 2 times"),
        ('{"path": "a", "label": "x"}\n{"path": "a"}', r"column 'label' is missing; it has path \(row 2\)"),
        ('{"path": "a", "label": "x", "price": 1}', r"unknown column 'price'"),
        ('["a", "b"]', "row 1 is not a JSON object; write one object per line"),
        ("[" * 100_000, r"row 1 is not JSON \(.*\); write one object per line"),
        ('{"label": ' * 100_000, r"row 1 is not JSON \(.*\); write one object per line"),
        ("path,label", r"row 1 is not JSON \(.*\); write one object per line"),
        (b'{"path": "a", "label": "Caf\xe9"}', r"not a JSON lines file in UTF-8 \(row 1 has the byte 0xe9\)"),
    ],
)  # fmt: skip
def test_json_lines_that_are_refused(tmp_path: Path, content: bytes | str, message: str) -> None:
    with pytest.raises(BadTable, match=message):
        rows_of(written(tmp_path / "m.jsonl", content))


def test_columns_that_nobody_asked_for_are_ignored_if_the_caller_says_so(tmp_path: Path) -> None:
    expected = [(1, {"path": "a", "label": "x"})]
    for name, content in (
        ("m.csv", "more,path,label,more\n1,a,x,2\n"),
        ("m.parquet", pa.table({"label": ["x"], "more": [["list"]], "path": ["a"]})),
        ("m.jsonl", '{"path": "a", "label": "x", "more": [1]}\n'),
    ):
        assert rows_of(written(tmp_path / name, content), known=None) == expected


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl", "m.parquet"])
@pytest.mark.parametrize("header", [["PK\x03" + "x" * 90_000], ["\x03"] * 20_000, ["label"] * 20_000, ["path"] * 2])
def test_what_is_shown_of_a_header_is_short(tmp_path: Path, name: str, header: list[str]) -> None:
    content: Any = ",".join(header)
    if name == "m.jsonl":
        content = "{" + ",".join(f"{json.dumps(each)}: 1" for each in header) + "}"
    if name == "m.parquet":
        content = pa.Table.from_arrays([pa.array([1])] * len(header), names=header)
    file = written(tmp_path / name, content)
    for known in (KNOWN, None):
        with pytest.raises(BadTable, match="column") as refused:
            rows_of(file, known=known)
        assert len(str(refused.value)) < len(str(file)) + 300
        assert str(refused.value).isprintable()


def test_there_is_no_table(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    for path, message in (
        (tmp_path, "is a folder; give a table"),
        (tmp_path / "none.csv", "no such file; give a table"),
        (Path("/dev/null"), "is a pipe or a device; give a table"),
        (tmp_path / "pipe.csv", "is a pipe or a device; give a table"),
    ):
        with pytest.raises(BadTable, match=message):
            rows_of(path)
