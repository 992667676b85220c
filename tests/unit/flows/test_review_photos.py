"""Photos of a data version in columns of numbers (flows.review.photos)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.errors import UnknownPhoto
from flows.review.photos import Photos, as_number, is_id, numbers, read_photos, words
from models.data.manifest import read_manifest
from tests.cleaned import cleaned_workspace
from tests.deliveries import photo


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cleaned_workspace(tmp_path_factory.mktemp("photos"), photos=4).data


@pytest.fixture(scope="module")
def photos(version: Path) -> Photos:
    return read_photos(version, version="a" * 32)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20))
def test_ids_as_numbers(values: list[int]) -> None:
    texts = [f"{value:016x}" for value in values]
    found = numbers(pa.chunked_array([pa.array(texts[:7], pa.string()), pa.array(texts[7:], pa.string())]))
    assert found.tolist() == values == [as_number(text) for text in texts]


def test_a_slice_of_ids_as_numbers() -> None:
    ids = pa.array([f"{value:016x}" for value in range(10)])
    assert numbers(ids.slice(3, 4)).tolist() == [3, 4, 5, 6]


@pytest.mark.parametrize("text", ["", "00000000000000g0", "0" * 15, "0" * 17, "ABCDEF0123456789", "0x00000000000000"])
def test_what_is_not_an_id(text: str) -> None:
    assert (is_id(text), as_number(text)) == (False, 0)


def test_columns_equal_those_of_the_manifest(version: Path, photos: Photos) -> None:
    manifest = read_manifest(version)
    for name, column in (("given_label", photos.given), ("label", photos.label), ("decision", photos.decision)):
        assert [column[row] for row in range(len(photos))] == getattr(manifest, name).tolist()
    assert [photos.name(row) for row in range(len(photos))] == manifest.id.tolist()
    np.testing.assert_array_equal(photos.score, manifest.score)
    assert photos.classes == sorted({*manifest.label, *manifest.given_label})


def test_a_photo_is_found_by_its_id(photos: Photos) -> None:
    assert [photos.row(photos.name(row)) for row in (0, len(photos) - 1)] == [0, len(photos) - 1]
    assert photos.rows([photos.name(2), "0" * 16, "no id"]).tolist() == [2, -1, -1]
    with pytest.raises(UnknownPhoto, match="has no photo 1234"):
        photos.row("1234")


def test_bytes_of_a_photo(photos: Photos) -> None:
    assert photos.read(0) in {photo(seed, side=48) for seed in range(30)}


def test_kept_photos_of_a_class(photos: Photos) -> None:
    for code, label in enumerate(photos.classes):
        rows = photos.of_class(code).tolist()
        assert rows == [row for row in range(len(photos)) if photos.label[row] == label and photos.kept[row]]
    assert [len(photos.of_class(code)) for code in (-1, len(photos.classes))] == [0, 0]


def test_words_of_an_empty_column() -> None:
    column = words(pa.chunked_array([pa.array([], pa.string())]), known=("train",))
    assert (column.codes.tolist(), column.values, column.is_one_of(["train"]).tolist()) == ([], ["train"], [])
