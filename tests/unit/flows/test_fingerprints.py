"""Fingerprints: their file, and near-duplicates, of which the quick search finds as many as comparing all with all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from flows.data import fingerprints as module
from flows.data.fingerprints import FINGERPRINTS, NEAR, Fingerprints, nearly_in
from pixels.fingerprint import BYTES


def draw(number: int, *, seed: int) -> np.ndarray:
    """Some plain, some on white, some of any colours."""
    random = np.random.default_rng(seed)
    middle = random.choice([40, 128, 245], (number, 1))
    return (
        (middle + random.normal(0, random.choice([2, 20], (number, 1)), (number, BYTES))).clip(0, 255).astype(np.uint8)
    )


@pytest.mark.parametrize("number", [0, 1, 40, 300])
def test_it_finds_what_comparing_all_with_all_finds(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 16)  # many blocks, some of them cut short
    some, others = draw(150, seed=0), draw(number, seed=1)
    some[::5] = np.resize(others, (30, BYTES)) if number else some[::5]
    some[1::5] = (some[::5] + np.random.default_rng(2).normal(0, NEAR, some[::5].shape)).clip(0, 255)
    squares = ((some[:, None].astype(float) - others[None].astype(float)) ** 2).mean(-1)
    expected = (squares <= NEAR**2).any(1)
    np.testing.assert_array_equal(nearly_in(some, others), expected)
    assert number == 0 or 0 < expected.sum() < len(some)


@pytest.mark.parametrize("apart", [-6, 6])
def test_the_threshold_itself_is_near_and_one_step_further_is_not(apart: int) -> None:
    assert abs(apart) == NEAR
    fingerprint, others = np.full((1, BYTES), 100, np.uint8), np.full((3, BYTES), 100 + apart, np.uint8)
    assert nearly_in(fingerprint, others)[0]
    others[:, 0] = 100 + apart + np.sign(apart)
    assert not nearly_in(fingerprint, others)[0]


def test_fingerprints_survive_their_file(tmp_path: Path) -> None:
    written = Fingerprints(np.array([b"%016x" % number for number in range(9)]), draw(9, seed=3))
    written.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["fingerprints.parquet"]
    assert pq.read_schema(tmp_path / "fingerprints.parquet").equals(FINGERPRINTS)
    read = Fingerprints.read(tmp_path)
    np.testing.assert_array_equal(read.id, written.id)
    np.testing.assert_array_equal(read.fingerprint, written.fingerprint)


def test_a_file_of_format_1_is_read(tmp_path: Path) -> None:
    written = Fingerprints(np.array([b"%016x" % number for number in range(9)]), draw(9, seed=3))
    written.write(tmp_path)
    table = pq.read_table(tmp_path / "fingerprints.parquet")
    (tmp_path / "fingerprints.parquet").unlink()
    pq.write_table(table.rename_columns(["id", "look"]), tmp_path / "looks.parquet")
    read = Fingerprints.read(tmp_path)
    np.testing.assert_array_equal(read.id, written.id)
    np.testing.assert_array_equal(read.fingerprint, written.fingerprint)


def test_no_version_and_a_version_without_fingerprints_have_none(tmp_path: Path) -> None:
    assert len(Fingerprints.read(None).id) == len(Fingerprints.read(tmp_path).id) == 0
