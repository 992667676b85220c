"""Nearest photos of the assortment: the products of an answer, what is compared, and its cost."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import numpy as np
import pytest

from flows.data.versions import DataVersions
from flows.endpoint import nearest
from flows.endpoint.nearest import COUNT, NearestPhotos, candidates
from flows.errors import InputError, WorkspaceBusy
from flows.review.photos import Photos, read_photos
from pixels import BadPhoto
from serving import Recognition
from tests.cleaned import CLASSES, cleaned_workspace
from tests.deliveries import photo

pytestmark = pytest.mark.dvc
RANKED = ((CLASSES[2], 0.6), ("sold out", 0.2), (CLASSES[0], 0.1))
SENT = photo(9000)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    versions = DataVersions(cleaned_workspace(tmp_path_factory.mktemp("nearest")))
    return read_photos(versions.materialise("selected"), version=versions.resolve("selected"))


class Network:
    """Answers with a vector that only the bytes of a photo decide; counts the photos that it was asked about."""

    def __init__(self) -> None:
        self.version, self.asked, self.broken = 1, 0, set[bytes]()

    def vector(self, photo: bytes) -> np.ndarray:
        seed = int.from_bytes(sha256(photo).digest()[:4]) + self.version
        return np.random.default_rng(seed).normal(size=512).astype(np.float32)

    def ask(self, photos: Sequence[bytes], *, embedding: bool) -> list[Recognition | BadPhoto]:
        assert embedding
        self.asked += len(photos)
        return [
            BadPhoto("torn") if each in self.broken else Recognition(RANKED, 0.9, self.version, "d", self.vector(each))
            for each in photos
        ]


def test_the_nearest_are_those_of_a_full_comparison(photos: Photos) -> None:
    network = Network()
    rows = [row for label in (CLASSES[2], CLASSES[0]) for row in photos.of_class(photos.label.code(label)).tolist()]
    unit = {row: vector / np.linalg.norm(vector) for row in rows for vector in [network.vector(photos.read(row))]}
    own = network.vector(SENT) / np.linalg.norm(network.vector(SENT))
    expected = sorted(rows, key=lambda row: -float(unit[row] @ own))[:COUNT]

    found = NearestPhotos(network.ask).find(SENT, photos)
    assert [each.photo for each in found.photos] == [photos.name(row) for row in expected]
    assert [each.label for each in found.photos] == [photos.label[row] for row in expected]
    assert found.photos[0].similarity == pytest.approx(float(unit[expected[0]] @ own), abs=1e-5)
    assert (found.compared, found.left_out, found.model_version) == (len(rows), 0, 1)


def test_a_photo_is_embedded_once_for_each_model_version(photos: Photos) -> None:
    network = Network()
    search = NearestPhotos(network.ask)
    all_of_them = search.find(SENT, photos).compared
    assert network.asked == all_of_them + 1
    search.find(SENT, photos)
    assert network.asked == all_of_them + 2
    network.version = 2
    assert search.find(SENT, photos).compared == all_of_them
    assert network.asked == 2 * all_of_them + 3


def test_a_search_ends_in_time_and_the_next_one_continues(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "CHUNK", 4)
    search = NearestPhotos(Network().ask)
    first, second = (search.find(SENT, photos, patience_s=0) for _ in range(2))
    assert (first.compared, second.compared) == (4, 8)
    assert first.left_out == second.left_out + 4
    assert len({each.label for each in first.photos}) == 2, "no product is left out"


def test_what_is_compared_is_bounded(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "PHOTOS_OF", 3)
    monkeypatch.setattr(nearest, "KEPT", 2)
    assert [photos.label[row] for row in candidates(photos, [CLASSES[0], CLASSES[1]])] == [*CLASSES[:2]] * 3
    search = NearestPhotos(Network().ask)
    search.find(SENT, photos)
    assert len(search._kept) == 2


def test_photos_that_cannot_be_decoded_are_left_out(photos: Photos) -> None:
    network = Network()
    network.broken.add(photos.read(int(photos.of_class(photos.label.code(CLASSES[2]))[0])))
    search = NearestPhotos(network.ask)
    found = search.find(SENT, photos)
    assert (found.left_out, found.compared) == (0, len(candidates(photos, [CLASSES[2], CLASSES[0]])) - 1)
    network.broken.add(SENT)
    with pytest.raises(InputError, match="cannot be compared: torn"):
        search.find(SENT, photos)


def test_one_search_at_a_time(photos: Photos) -> None:
    search = NearestPhotos(Network().ask)
    with search._lock, pytest.raises(WorkspaceBusy, match="try again in a few seconds"):
        search.find(SENT, photos, patience_s=0)
