"""Near-duplicates and conflicts of a version as rows of its photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from flows.delivery.build import build_version
from flows.review.pairs import conflicts, near_pairs
from flows.review.photos import Photos, read_photos
from tests.deliveries import deliver
from tests.doubles import CLAIMED, MILK, SOAP, version_with_doubles


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    root = tmp_path_factory.mktemp("pairs")
    version_with_doubles(root / "source", root / "version")
    return read_photos(root / "version", version="0" * 32)


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
    assert sorted(claims.values(), key=sorted) == [{MILK, SOAP}, {MILK, CLAIMED}]
    assert sum(found.with_label(MILK)) == 2
    [position] = np.flatnonzero(found.with_label(CLAIMED))
    assert found.labels(position)[1]["label"] == CLAIMED
    assert found.position(int(found.row[1])) == 1
    assert found.position(len(photos) + 1) == -1


def test_a_version_without_such_photos_has_none(tmp_path: Path) -> None:
    folder = tmp_path / "version"
    build_version(deliver(tmp_path / "source", {MILK: 4, SOAP: 4}, side=32), base=None, out=folder)
    photos = read_photos(folder, version="0" * 32)

    assert pq.read_metadata(folder / "conflicts.parquet").num_rows == 0
    assert len(near_pairs(photos)) == len(conflicts(photos)) == 0
    assert not conflicts(photos).with_label(MILK).any()
