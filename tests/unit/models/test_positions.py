"""Positions of texts in a column that holds each of them once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.data.manifest import Manifest
from models.data.positions import positions
from models.errors import ManifestError


def test_positions_of_objects_and_of_plain_texts_are_the_same() -> None:
    among = ["apple", "pear", "plum"]
    for wanted in (np.array(["plum", "fig", "apple", "plum"]), np.array(["plum", "fig", "apple", "plum"], object)):
        assert positions(wanted, among).tolist() == [2, -1, 0, 2]
        assert positions(wanted, np.array(among, object)).dtype == np.int64


@pytest.mark.parametrize("none", [[], np.empty(0, object), np.empty(0, str)])
def test_an_empty_side_finds_nothing(none: list[str]) -> None:
    assert positions(none, ["apple"]).tolist() == []
    assert positions(["apple"], none).tolist() == [-1]


def test_a_photo_of_another_version_is_refused_with_its_id(tmp_path: Path) -> None:
    texts, numbers = np.array(["a", "b"], object), np.zeros(2, np.int32)
    manifest = Manifest(
        data=tmp_path, id=texts, given_label=texts, label=texts, split=texts, kept=numbers == 0, decision=texts,
        score=numbers.astype(np.float32), round=numbers.astype(np.int8), scored_by=texts, shard=texts,
        offset=numbers.astype(np.int64), size=numbers,
    )  # fmt: skip
    assert manifest.rows_of(["b", "a", "b"]).tolist() == [1, 0, 1]
    with pytest.raises(ManifestError, match=r"labels\.parquet: column id lacks 2 photos that were scored, first x"):
        manifest.rows_of(["a", "x", "y"])
