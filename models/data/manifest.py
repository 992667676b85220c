"""Tables of a data version, read as arrays by ingestion, training and cleaning.

A data version is a folder with `index.parquet` (location of each photo), `labels.parquet` (labels and decisions) and
`shards/<sha256>.tar`; docs/inside/architecture.md lists every column.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from models.data.positions import Texts, positions
from models.errors import ManifestError

SPLITS = ("train", "val", "test")
UNLABELLED = "unlabelled"  # split of photos without a label: only the student of an ensemble learns from them
FLAGGED = ("dropped", "doubted", "relabelled")  # decisions of cleaning, which it may revise
CHECKED = "checked"  # decision of a person, which cleaning never changes
NEAR = ("near-test", "near-train")  # decisions of ingestion about near-duplicates
OUTSIDE = ("conflict", *NEAR)  # decisions of ingestion: excluded from training and cleaning
DECISIONS = ("", *FLAGGED, *OUTSIDE, CHECKED)
KEPT = ("unchanged", "confirmed", "doubted", "relabelled", UNLABELLED)  # outcomes of photos that a run uses
LEFT_OUT = ("dropped", "conflicts", "near")
OUTCOMES = (*KEPT, *LEFT_OUT)
DECIDED = {"confirmed": (CHECKED,), "doubted": ("doubted",), "conflicts": ("conflict",), "near": NEAR}

INDEX = pa.schema(
    [
        ("id", pa.string()),
        ("sha256", pa.string()),
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("source", pa.string()),
        ("path", pa.string()),
    ]
)
LABELS = pa.schema(
    [
        ("id", pa.string()),
        ("given_label", pa.string()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("kept", pa.bool_()),
        ("decision", pa.string()),
        ("score", pa.float32()),
        ("round", pa.int8()),
        ("scored_by", pa.string()),
    ]
)
FORMAT = 2  # of a data version, in its VERSION.json
FORMER = {"scored_by": "judge"}  # names of columns in format 1
ADDED = ("scored_by",)  # text columns that some versions of format 1 lack; read as empty
CONFLICTS = pa.schema([(name, pa.string()) for name in ("id", "label", "source", "path")])
QUARANTINE = pa.schema([(name, pa.string()) for name in ("path", "label", "source", "field", "reason")])

TABLES = {"index": INDEX, "labels": LABELS, "conflicts": CONFLICTS, "quarantine": QUARANTINE}


@dataclass(frozen=True)
class Manifest:
    """Photos of one data version; every array has one element per photo, sorted by id. Labels are "" if there is none.

    id, given_label, label, split, decision, scored_by, shard: str objects; kept: bool; offset, size: bytes in the shard;
    score: float32 quality of the given label in [0, 1], NaN if it was never scored; round: int8 round of cleaning that
    last scored it, 0 = as delivered; scored_by: names of the steps whose networks scored it, "" = none.
    """

    data: Path
    id: NDArray[np.object_]
    given_label: NDArray[np.object_]
    label: NDArray[np.object_]
    split: NDArray[np.object_]
    kept: NDArray[np.bool_]
    decision: NDArray[np.object_]
    score: NDArray[np.float32]
    round: NDArray[np.int8]
    scored_by: NDArray[np.object_]
    shard: NDArray[np.object_]
    offset: NDArray[np.int64]
    size: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.id)

    @cached_property
    def classes(self) -> list[str]:
        """Sorted given and decided labels of the train photos; unchanged if cleaning empties a class."""
        train = self.split == "train"
        return sorted({*self.given_label[train], *self.label[train]})

    @cached_property
    def target(self) -> NDArray[np.int64]:
        """(N,) position of each photo's label in `classes`; -1 for a label that no train photo has."""
        return positions(self.label, self.classes)

    @cached_property
    def given_target(self) -> NDArray[np.int64]:
        """(N,) position of each photo's given label in `classes`; -1 as above. Cleaning scores given labels."""
        return positions(self.given_label, self.classes)

    def rows_of(self, ids: Texts) -> NDArray[np.int64]:
        """(M,) row of each of these photos.

        Raises:
            ManifestError: one of them is not in this data version.
        """
        rows = positions(ids, self.id)
        if (unknown := rows < 0).any():
            raise ManifestError(
                f"{self.data / 'labels.parquet'}: column id lacks {int(unknown.sum())} photos that were scored, first "
                f"{ids[int(unknown.argmax())]}; restore the data version"
            )
        return rows

    def has_decision(self, decisions: Sequence[str]) -> NDArray[np.bool_]:
        """(N,) True for each photo with one of these decisions."""
        return _is_one_of(pa.array(self.decision, pa.string()), decisions)

    def train_counts(self) -> NDArray[np.int64]:
        """(C,) kept train photos per class."""
        return np.bincount(self.target[self.kept & (self.split == "train")], minlength=len(self.classes))

    def read_photo(self, row: int) -> bytes:
        """The bytes of one photo, as delivered."""
        return read_photo(self.data, str(self.shard[row]), int(self.offset[row]), int(self.size[row]))


def read_manifest(data: Path) -> Manifest:
    """Photos of the data version in folder `data`.

    Raises:
        ManifestError: a file or column is missing, has another type or holds an unknown value, or the tables disagree.
    """
    labels = read_table(data, name="labels")
    index = read_table_file(data / "index.parquet", name="index", columns=("id", "shard", "offset", "size"))
    ids = labels["id"].to_numpy()
    if not labels["id"].equals(index["id"]):
        raise ManifestError(
            f"{data / 'labels.parquet'}: column id differs from that of index.parquet; restore the data version"
        )
    if np.any(ids[1:] <= ids[:-1]):
        raise ManifestError(
            f"{data / 'labels.parquet'}: column id is not sorted or has duplicates; restore the data version"
        )
    for column, known in (("split", (*SPLITS, UNLABELLED)), ("decision", DECISIONS)):
        _check_values(data / "labels.parquet", labels, column=column, known=known)
    texts = {name: _strings(labels, name) for name in ("given_label", "label", "split", "decision", "scored_by")}
    score = pc.fill_null(labels["score"], float("nan")).to_numpy()
    # The first releases wrote log margins, and not which networks gave them.
    score = np.where(texts["scored_by"] != "", score, np.float32("nan"))
    return Manifest(
        data=data,
        id=ids,
        **texts,
        kept=labels["kept"].to_numpy(),
        score=score,
        round=labels["round"].to_numpy(),
        shard=_strings(index, "shard"),
        offset=index["offset"].to_numpy(),
        size=index["size"].to_numpy(),
    )


def write_labels(folder: Path, manifest: Manifest) -> None:
    """Writes the label columns of `manifest` as `folder`/labels.parquet; the same manifest gives the same bytes."""
    score = pa.array(manifest.score, pa.float32(), from_pandas=True)  # NaN becomes null
    columns = {name: getattr(manifest, name) for name in LABELS.names} | {"score": score}
    write_table(folder, columns, name="labels")


def read_table(data: Path, *, name: str) -> pa.Table:
    """Table `name` (a key of TABLES) of the data version in folder `data`, as `read_table_file` returns it."""
    return read_table_file(data / f"{name}.parquet", name=name)


def read_table_file(path: Path, *, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Table `name` (a key of TABLES), or some columns of it, checked against its schema; only `score` may have nulls.

    Raises:
        ManifestError: the file or a column is missing, or a column has another type or nulls.
    """
    try:
        table = pq.read_table(path, columns=None if columns is None else list(columns))
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such file; is {path.parent} a data version?") from None
    except pa.ArrowInvalid as error:
        raise ManifestError(f"{path}: not a readable Parquet file ({error}); restore the data version") from None
    schema = TABLES[name] if columns is None else pa.schema([TABLES[name].field(each) for each in columns])
    for field in schema:
        if field.name not in table.column_names and (former := FORMER.get(field.name)) in table.column_names:
            table = table.rename_columns([field.name if each == former else each for each in table.column_names])
        if field.name in ADDED and field.name not in table.column_names:
            table = table.append_column(field, pa.array([""] * len(table), field.type))
        if field.name not in table.column_names:
            raise ManifestError(
                f"{path}: column {field.name} is missing; the columns are {', '.join(table.column_names)}"
            )
        column = table[field.name]
        if column.type != field.type:
            raise ManifestError(f"{path}: column {field.name} is {column.type}, expected {field.type}")
        if column.null_count and field.name != "score":
            raise ManifestError(f"{path}: column {field.name} has {column.null_count} empty cells")
    return table.select(schema.names)


def write_table(folder: Path, columns: Mapping[str, Any], *, name: str) -> None:
    """Writes `columns` as `folder`/`name`.parquet, compressed by zstd; the same columns give the same bytes."""
    pq.write_table(pa.table(dict(columns), schema=TABLES[name]), folder / f"{name}.parquet", compression="zstd")


def read_photo(data: Path, shard: str, offset: int, size: int) -> bytes:
    """The bytes of one photo, as delivered, from `data`/shards/`shard`.tar.

    Raises:
        ManifestError: the shard is missing or ends too early.
    """
    path = data / "shards" / f"{shard}.tar"
    try:
        with path.open("rb") as file:
            file.seek(offset)
            photo = file.read(size)
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such shard; restore the data version") from None
    if len(photo) != size:
        raise ManifestError(
            f"{path}: ends before offset {offset} + size {size} of index.parquet; restore the data version"
        )
    return photo


def write_version(folder: Path, *, parent: str | None, step: str, config: str = "", code: str = "") -> dict[str, int]:
    """Writes `folder`/VERSION.json for the tables in `folder`; returns its counts.

    The JSON is canonical and has no time stamp, so that the same step on the same parent gives the same version.
    """
    counts = count(folder)
    version = {"format": FORMAT, "parent": parent, "step": step, "config": config, "code": code, "counts": counts}
    text = json.dumps(version, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    (folder / "VERSION.json").write_text(text, encoding="utf-8")
    return counts


def outcomes(labels: pa.Table) -> NDArray[np.int64]:
    """(N,) position in OUTCOMES of the one outcome of each photo, by cleaning, by people and by ingestion together.

    Kept photos have no label; or they are relabelled if it is not the given one; else doubted, confirmed by a person, or
    unchanged. Of the others, conflicts and near-duplicates were left out by ingestion; cleaning or a person dropped the rest.
    """
    kept, decision = labels["kept"].to_numpy(), labels["decision"]
    decided = {name: _is_one_of(decision, values) for name, values in DECIDED.items()}
    relabelled = pc.not_equal(labels["label"], labels["given_label"]).to_numpy()
    cases = {
        UNLABELLED: kept & pc.equal(labels["split"], UNLABELLED).to_numpy(),
        "relabelled": kept & relabelled,
        **{name: decided[name] & (kept if name in KEPT else ~kept) for name in DECIDED},
        "unchanged": kept,
    }
    return np.select(list(cases.values()), [OUTCOMES.index(name) for name in cases], OUTCOMES.index("dropped"))


def count(data: Path) -> dict[str, int]:
    """The counts of `count_tables` for the data version in folder `data`."""
    return count_tables(read_table(data, name="labels"), read_table(data, name="quarantine"))


def count_tables(labels: pa.Table, quarantine: pa.Table) -> dict[str, int]:
    """Numbers of photos of each kind in a data version, and of refused rows.

    photos = kept + dropped + conflicts + near. kept = train + val + test + unlabelled; the first three together are
    unchanged + confirmed + doubted + relabelled.
    """
    split = tally(labels["split"].filter(labels["kept"]))
    numbers = np.bincount(outcomes(labels), minlength=len(OUTCOMES)).tolist()
    train = pc.equal(labels["split"], "train")
    classes = {label for name in ("given_label", "label") for label in tally(labels[name].filter(train))}
    return {
        "photos": len(labels),
        "kept": split.total(),
        **dict(zip(OUTCOMES, numbers, strict=True)),
        "quarantined": quarantine.num_rows,
        "classes": len(classes),
        **{name: split[name] for name in SPLITS},
    }


def class_counts(labels: pa.Table) -> pa.Table:
    """Numbers of photos of each class, sorted by class: kept ones per split, and those left out, which sum to `photos`."""
    labels = labels.select(["label", "split", "kept"]).filter(pc.not_equal(labels["split"], UNLABELLED))
    encoded = labels["label"].combine_chunks().dictionary_encode()
    names, codes = encoded.dictionary, encoded.indices.to_numpy()
    split = pc.index_in(labels["split"], value_set=pa.array(SPLITS)).to_numpy()
    cell = np.where(labels["kept"].to_numpy(), split, len(SPLITS))
    width = len(SPLITS) + 1
    numbers = np.bincount(codes * width + cell, minlength=len(names) * width).reshape(-1, width)
    columns = dict(zip((*SPLITS, "left_out"), numbers.T, strict=True))
    return pa.table({"class": names, **columns, "photos": numbers.sum(1)}).sort_by("class")


def tally(column: pa.ChunkedArray) -> Counter[str]:
    """Number of occurrences of each text in a column."""
    counts = pc.value_counts(column)
    return Counter(dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)))


def _is_one_of(column: pa.Array | pa.ChunkedArray, values: Sequence[str]) -> NDArray[np.bool_]:
    """(N,) True for each text of a column that is one of these."""
    return np.asarray(pc.is_in(column, value_set=pa.array(values, pa.string())))


def _strings(table: pa.Table, name: str) -> NDArray[np.object_]:
    """A text column as str objects; equal ones (labels, splits, shards) share memory."""
    encoded = table[name].combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    words = encoded.dictionary.to_numpy(zero_copy_only=False)
    return words[encoded.indices.to_numpy()]


def _check_values(path: Path, table: pa.Table, *, column: str, known: tuple[str, ...]) -> None:
    for value in pc.unique(table[column]).to_pylist():
        if value not in known:
            raise ManifestError(f"{path}: column {column} holds {value!r}; allowed are {', '.join(map(repr, known))}")
