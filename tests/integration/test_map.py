"""A map as the child process makes it, from the cached result of a cleaning."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from flows.data.versions import DataVersions
from flows.errors import InputError, WorkspaceBusy
from flows.map.layout import lay_out
from flows.map.maps import Maps
from flows.map.points import Points
from flows.map.sources import Vectors
from flows.purge import purge
from flows.review.photos import Photos, read_photos
from flows.workspace import Workspace
from tests.cleaned import FOLD, cleaned_workspace
from tests.command_line import cleanshelf

pytestmark = [
    pytest.mark.dvc,
    pytest.mark.filterwarnings("ignore:Tensorflow not installed:ImportWarning"),  # umap offers a variant that needs it
]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return cleaned_workspace(tmp_path_factory.mktemp("map"))


@pytest.fixture(scope="module")
def photos(shop: Workspace) -> Photos:
    version = DataVersions(shop).selected()
    assert version
    return read_photos(DataVersions(shop).materialise(version), version=version)


@pytest.fixture(scope="module")
def made(shop: Workspace, photos: Photos) -> Points:
    return Maps(shop).make(photos, say=print)


def test_a_map_has_all_scored_photos_and_is_made_once(shop: Workspace, photos: Photos, made: Points) -> None:
    scored = photos.id[photos.scored_by.is_one_of([FOLD])]
    assert made.id.tolist() == scored.tolist()
    assert np.abs(made.xy).max() == pytest.approx(1)
    found = Maps(shop).find(photos)
    assert found
    assert np.array_equal(found.xy, made.xy)
    with shop.lock("another", name="map"):
        assert np.array_equal(Maps(shop).make(photos, say=print).xy, made.xy), "found, so that it asks for no lock"


def test_photos_that_look_the_same_to_the_network_lie_together(photos: Photos, made: Points) -> None:
    kept = np.isin(photos.id, made.id)
    shown = photos.label.codes[kept]
    distance = np.linalg.norm(made.xy[:, None] - made.xy[None], axis=2) + 9 * np.eye(len(made.id))
    same = shown[distance.argmin(axis=1)] == shown
    assert same.mean() > 0.5, "features of the fold are clusters by class, up to the photos that it flagged"


def test_garbage_collection_frees_maps_that_no_version_here_shows(
    shop: Workspace, photos: Photos, made: Points
) -> None:
    [own] = shop.maps.glob("*.parquet")
    for name in ("0123456789abcdef.parquet", ".unfinished"):
        (shop.maps / name).write_bytes(b"points")
    (shop.versions / ("0" * 32)).mkdir()  # a copy that a kill left unfinished
    assert cleanshelf("data", "gc", "--dry-run", "-w", str(shop.root)).stdout.count("map of no version here") == 2
    cleanshelf("data", "gc", "-w", str(shop.root))
    assert list(shop.maps.iterdir()) == [own]
    assert Maps(shop).unused() == []
    assert [each.path for each in Maps(shop).unused([shop.versions / photos.version])] == [own]


@pytest.mark.slow  # UMAP compiles again
def test_the_same_seed_gives_the_same_map(shop: Workspace, photos: Photos, made: Points) -> None:
    maps = Maps(shop)
    shutil.rmtree(shop.maps)
    assert maps.find(photos) is None
    with shop.lock("another", name="map"), pytest.raises(WorkspaceBusy, match="another"):
        maps.make(photos, say=print)
    (shop.maps).mkdir()
    (shop.maps / ".killed.parquet.1").write_bytes(b"part of a map")
    assert np.array_equal(maps.make(photos, say=print).xy, made.xy)
    assert len([*shop.maps.iterdir()]) == 1, "what a killed one left is gone"


def test_without_umap_the_message_says_how_to_install_it(
    shop: Workspace, photos: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(shop.maps, ignore_errors=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"umap-learn, which is not installed; run .*\[map\]"):
        Maps(shop).make(photos, say=print)


@pytest.mark.slow  # so does its search
def test_photos_beyond_those_that_are_fitted_lie_among_their_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.map.layout.WHOLE", 300)
    monkeypatch.setattr("flows.map.layout.FIT_MOST", 240)
    draw, group = np.random.default_rng(0), np.arange(400) % 6
    table = (8 * np.eye(6, 10)[group] + draw.normal(size=(400, 10))).astype(np.float16)
    table[[7, 8, 9, 10, 11, 12, 13]] = np.nan  # some are fitted, and some are not
    vectors = Vectors(np.arange(400, dtype=np.uint64), [table[:150], table[150:]], [np.arange(150), np.arange(250)])
    positions = lay_out(vectors, seed=0)
    usable = ~np.isnan(positions[:, 0])
    assert np.flatnonzero(~usable).tolist() == [7, 8, 9, 10, 11, 12, 13]
    middle = np.stack([np.median(positions[usable & (group == number)], axis=0) for number in range(6)])
    nearest = np.linalg.norm(positions[usable, None] - middle[None], axis=2).argmin(axis=1)
    assert (nearest == group[usable]).mean() > 0.95
    assert np.array_equal(lay_out(vectors, seed=0), positions, equal_nan=True)


def test_a_purge_deletes_maps(shop: Workspace, photos: Photos, tmp_path: Path) -> None:
    versions = DataVersions(Workspace.find(Path(shutil.copytree(shop.root, tmp_path / "shop", symlinks=True))))
    maps = versions.workspace.maps
    maps.mkdir(exist_ok=True)
    (maps / "any.parquet").write_bytes(b"points")
    purge(versions, [photos.name(0)])
    assert not maps.exists()
