"""Near-duplicates and conflicts of a version as rows of its photos."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.data.near import PAIRS, write_pairs
from flows.delivery.build import build_version
from flows.review.pairs import conflicts, near_pairs
from flows.review.photos import Photos, read_photos
from models.data.manifest import read_manifest, write_labels
from tests.deliveries import deliver, photo

NEW, DEAR, MILK = "Only Claimed", "Brio Soap", "Alma Milk"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    """A version with two photos in conflict, and one pair of near-duplicates besides a decision without its partner."""
    root = tmp_path_factory.mktemp("pairs")
    source = deliver(root / "source", {MILK: 8, DEAR: 8}, side=32)
    for label, seeds in {DEAR: (0,), NEW: (1,)}.items():
        (source / label).mkdir(exist_ok=True)
        for seed in seeds:
            (source / label / f"again {seed}.png").write_bytes(photo(seed, side=32))
    folder = root / "version"
    build_version(source, base=None, out=folder)
    manifest = read_manifest(folder)
    train, test = (np.flatnonzero((manifest.split == split) & (manifest.decision == "")) for split in ("train", "test"))
    decision, kept = manifest.decision.copy(), manifest.kept.copy()
    decision[train[:2]], kept[train[:2]] = "near-test", False
    (folder / "labels.parquet").unlink()
    write_labels(folder, dataclasses.replace(manifest, decision=decision, kept=kept))
    pair = [[manifest.id[train[0]]], [manifest.id[test[0]]], ["near-test"], [3.5], [0.25]]
    write_pairs(
        folder, pa.table([pa.array(each, kind.type) for each, kind in zip(pair, PAIRS, strict=True)], schema=PAIRS)
    )
    return read_photos(folder, version="0" * 32)


def test_pairs_name_both_photos_and_a_decision_without_partner(photos: Photos) -> None:
    pairs = near_pairs(photos)

    assert len(pairs) == 2
    assert [photos.decision[row] for row in pairs.row] == ["near-test"] * 2
    assert photos.split[pairs.near[0]] == "test"
    assert pairs.near[1] == -1
    assert pairs.distance[0] == pytest.approx(3.5)
    assert np.isnan(pairs.distance[1])


def test_conflicts_list_every_claim_of_a_photo(photos: Photos) -> None:
    found = conflicts(photos)

    assert len(found) == 2
    claims = {photos.name(row): {claim["label"] for claim in found.labels(at)} for at, row in enumerate(found.row)}
    assert sorted(claims.values(), key=sorted) == [{MILK, DEAR}, {MILK, NEW}]
    assert sum(found.with_label(MILK)) == 2
    [position] = np.flatnonzero(found.with_label(NEW))
    assert found.labels(position)[1]["label"] == NEW
    assert found.position(int(found.row[1])) == 1
    assert found.position(len(photos) + 1) == -1


def test_a_version_without_such_photos_has_none(tmp_path: Path) -> None:
    folder = tmp_path / "version"
    build_version(deliver(tmp_path / "source", {MILK: 4, DEAR: 4}, side=32), base=None, out=folder)
    photos = read_photos(folder, version="0" * 32)

    assert pq.read_metadata(folder / "conflicts.parquet").num_rows == 0
    assert len(near_pairs(photos)) == len(conflicts(photos)) == 0
    assert not conflicts(photos).with_label(MILK).any()
