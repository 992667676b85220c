"""Fingerprints: their file, and the search for candidates, which finds what comparing all with all finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from flows.data import fingerprints as module
from flows.data.fingerprints import CELL, FINGERPRINTS, NEAR, PARTNERS, TREES, Fingerprints, candidates
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
    distance = np.sqrt(((some[:, None].astype(float) - others[None].astype(float)) ** 2).mean(-1))
    found = candidates(some, others)
    assert number == 0 or 0 < len(set(found.row.tolist())) < len(some)
    for row in range(len(some)):
        expected = np.sort(distance[row][distance[row] <= NEAR])[:PARTNERS]
        np.testing.assert_allclose(found.distance[found.row == row], expected, rtol=1e-5)
    np.testing.assert_allclose(found.distance, distance[found.row, found.other], rtol=1e-5)


@pytest.mark.parametrize("plain", [False, True], ids=["any colours", "all on white"])
def test_partitions_find_nearly_all_copies_among_many_and_compare_few_pairs(
    plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    latent = random.normal(0, 1, (24_000, 12)) * np.geomspace(60, 6, 12) * (0.3 if plain else 1)
    drawn = (245 if plain else 128) + latent @ random.normal(0, 0.3, (12, BYTES))
    some, others = np.split(drawn.clip(0, 255).astype(np.uint8), [20_000])
    rows, copied = np.arange(0, 20_000, 40), np.arange(0, 4_000, 8)
    some[rows] = (others[copied] + random.normal(0, 1.5, (500, BYTES))).clip(0, 255)
    compared = []
    nearest = module._nearest
    monkeypatch.setattr(module, "ALL_PAIRS", 0)
    monkeypatch.setattr(
        module, "_nearest", lambda a, b, *rest: (compared.append((len(a), len(b))), nearest(a, b, *rest))[1]
    )
    found = candidates(some, others)
    pairs = set(zip(found.row.tolist(), found.other.tolist(), strict=True))
    assert np.mean([pair in pairs for pair in zip(rows.tolist(), copied.tolist(), strict=True)]) > 0.95
    assert max(ours + theirs for ours, theirs in compared) <= CELL
    assert sum(ours + theirs for ours, theirs in compared) == TREES * 24_000
    assert np.bincount(found.row).max() <= PARTNERS


def test_equal_fingerprints_in_any_number_are_cut_into_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ALL_PAIRS", 0)
    found = candidates(np.full((5000, BYTES), 255, np.uint8), np.full((3000, BYTES), 255, np.uint8))
    assert len(set(found.row.tolist())) == 5000
    assert np.bincount(found.row).max() == PARTNERS


@pytest.mark.parametrize("apart", [-6, 6])
def test_the_threshold_itself_is_near_and_one_step_further_is_not(apart: int) -> None:
    assert abs(apart) == NEAR
    fingerprint, others = np.full((1, BYTES), 100, np.uint8), np.full((3, BYTES), 100 + apart, np.uint8)
    assert candidates(fingerprint, others).other.tolist() == [0, 1, 2]
    others[:, 0] = 100 + apart + np.sign(apart)
    assert not len(candidates(fingerprint, others).row)


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
