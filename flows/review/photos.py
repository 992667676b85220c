"""Photos of a data version in columns of numbers, for lookups and filters within milliseconds.

A version of 2.5 million photos takes about 0.15 GB: texts are codes into a list of their values, ids are integers.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from contract.labels import KnownLabels
from flows.errors import UnknownPhoto
from models.data.manifest import SPLITS, read_photo, read_table_file

HEX = 16  # digits of an id
PERSON = "person"  # first word of `scored_by` of a photo that a person labelled


@dataclass(frozen=True)
class Words:
    """A column of texts: (N,) int32 positions in `values`."""

    codes: NDArray[np.int32]
    values: list[str]

    def __getitem__(self, row: int) -> str:
        return self.values[self.codes[row]]

    def code(self, value: str) -> int:
        """Position of a value; -1 for one that no photo has, which equals no code."""
        return self._positions.get(value, -1)

    def is_one_of(self, values: Sequence[str]) -> NDArray[np.bool_]:
        """(N,) True for each photo with one of these values."""
        wanted = np.zeros(len(self.values), bool)
        wanted[[code for value in values if (code := self.code(value)) >= 0]] = True
        return wanted[self.codes] if len(wanted) else np.zeros(len(self.codes), bool)

    @functools.cached_property
    def _positions(self) -> dict[str, int]:
        return {value: position for position, value in enumerate(self.values)}


@dataclass(frozen=True)
class Photos:
    """Photos of one data version; arrays have one element per photo, sorted by id.

    id: uint64, the 16 hex digits as a number; given, label: their `values` are the same sorted list of classes; score:
    float32 label quality in [0, 1], NaN where none was measured; offset, size: bytes in the shard.
    """

    version: str
    folder: Path
    id: NDArray[np.uint64]
    given: Words
    label: Words
    split: Words
    decision: Words
    scored_by: Words
    source: Words
    shard: Words
    kept: NDArray[np.bool_]
    score: NDArray[np.float32]
    offset: NDArray[np.int64]
    size: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.id)

    @property
    def classes(self) -> list[str]:
        """Sorted given and decided labels of all photos."""
        return self.label.values

    def row(self, photo: str) -> int:
        """Row of the photo with this id.

        Raises:
            UnknownPhoto: the version has no such photo.
        """
        row = int(self.rows([photo])[0])
        if row < 0:
            raise UnknownPhoto(f"data version {self.version[:12]} has no photo {photo[:HEX]}; reload the page")
        return row

    def rows(self, photos: Sequence[str]) -> NDArray[np.int64]:
        """(M,) row of each photo id; -1 for ids that the version lacks, or that are not 16 hex digits."""
        if not len(self.id):
            return np.full(len(photos), -1)
        ids = np.array([as_number(photo) for photo in photos], np.uint64)
        rows = np.minimum(np.searchsorted(self.id, ids), len(self.id) - 1)
        found = (self.id[rows] == ids) & np.array([is_id(photo) for photo in photos], bool)
        return np.where(found, rows, -1)

    def name(self, row: int) -> str:
        """Id of a photo as 16 hex digits."""
        return f"{int(self.id[row]):016x}"

    def read(self, row: int) -> bytes:
        """Bytes of a photo, as delivered."""
        return read_photo(self.folder, self.shard[row], int(self.offset[row]), int(self.size[row]))

    @functools.cached_property
    def products(self) -> KnownLabels:
        """The classes, for finding the one that a text means; photos without a label are of none."""
        return KnownLabels(label for label in self.classes if label)

    @functools.cached_property
    def by_label(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of kept photos grouped by label, (K,), and where each class starts in them, (C + 1,)."""
        rows = np.flatnonzero(self.kept)
        order = np.argsort(self.label.codes[rows], kind="stable")
        counts = np.bincount(self.label.codes[rows], minlength=len(self.classes))
        return rows[order], np.concatenate([[0], np.cumsum(counts)])

    def of_class(self, code: int) -> NDArray[np.int64]:
        """Rows of the kept photos of one class."""
        rows, starts = self.by_label
        return rows[starts[code] : starts[code + 1]] if 0 <= code < len(self.classes) else rows[:0]


def is_id(text: str) -> bool:
    """True for 16 lower-case hex digits."""
    return len(text) == HEX and not set(text) - set("0123456789abcdef")


def as_number(photo: str) -> int:
    """An id as a number; 0 for a text that is not an id."""
    return int(photo, 16) if is_id(photo) else 0


def read_photos(folder: Path, *, version: str) -> Photos:
    """Photos of the data version in `folder`.

    Raises:
        ManifestError: a table is missing or damaged, or the tables disagree.
    """
    labels = read_table_file(folder / "labels.parquet", name="labels")
    index = read_table_file(folder / "index.parquet", name="index", columns=("id", "shard", "offset", "size", "source"))
    given, label = _together(labels["given_label"], labels["label"])
    score = pc.fill_null(labels["score"], float("nan")).to_numpy().astype(np.float32)
    scored_by = words(labels["scored_by"])
    is_scored = ~scored_by.is_one_of([""])  # the first releases wrote other scores, and not by which networks
    return Photos(
        version=version,
        folder=folder,
        id=numbers(labels["id"]),
        given=given,
        label=label,
        split=words(labels["split"], known=SPLITS),
        decision=words(labels["decision"]),
        scored_by=scored_by,
        source=words(index["source"]),
        shard=words(index["shard"]),
        kept=labels["kept"].to_numpy(),
        score=np.where(is_scored, score, np.float32("nan")),
        offset=index["offset"].to_numpy(),
        size=index["size"].to_numpy(),
    )


def numbers(ids: pa.ChunkedArray | pa.Array) -> NDArray[np.uint64]:
    """(N,) ids of 16 hex digits as numbers, which sort as the texts do."""
    joined = pa.concat_arrays(ids.chunks) if isinstance(ids, pa.ChunkedArray) else ids
    if not len(joined):
        return np.zeros(0, np.uint64)
    flat = joined.cast(pa.binary(HEX)) if not pa.types.is_fixed_size_binary(joined.type) else joined
    digits = np.frombuffer(flat.buffers()[1], np.uint8, len(flat) * HEX, flat.offset * HEX).reshape(-1, HEX)
    values = np.where(digits >= ord("a"), digits - np.uint8(ord("a") - 10), digits - np.uint8(ord("0")))
    packed = (values[:, 0::2] << 4) | values[:, 1::2]
    return np.ascontiguousarray(packed.astype(np.uint8)).view(">u8").ravel().astype(np.uint64)


def words(column: pa.ChunkedArray, *, known: Sequence[str] = ()) -> Words:
    """A text column as codes; `known` values come first and are listed even if no photo has them."""
    encoded = column.combine_chunks()
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    encoded = encoded.dictionary_encode()
    found: list[str] = encoded.dictionary.to_pylist()
    values = [*known, *(value for value in found if value not in known)]
    place = {value: position for position, value in enumerate(values)}
    moved = np.array([place[value] for value in found], np.int32)
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    return Words(moved[codes] if len(moved) else codes.astype(np.int32), values)


def _together(*columns: pa.ChunkedArray) -> list[Words]:
    """Text columns as codes into one sorted list."""
    encoded = [words(column) for column in columns]
    values = sorted({value for each in encoded for value in each.values})
    place: dict[str, int] = {value: position for position, value in enumerate(values)}

    def moved(each: Words) -> NDArray[Any]:
        return np.array([place[value] for value in each.values], np.int32)[each.codes] if each.values else each.codes

    return [Words(moved(each), values) for each in encoded]
