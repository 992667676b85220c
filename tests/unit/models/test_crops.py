"""Choice of crops and their enlargement on selection photos."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.data.manifest import Manifest, read_manifest
from models.data.photos import Photos
from models.export import crops
from models.export.crops import CropChoice, choose_crops, choose_ratio, first_classes
from models.export.graph import DeployGraph
from models.networks.network import build_network
from models.recipe.config import Export, Member
from models.training.train import Trained

SETTINGS = Export(input_size=40, crops=10, enlarge=(1.5, 1.0, 1.25))
Variant = Callable[[Callable[[Manifest], dict[str, Any]]], Path]


@pytest.fixture(scope="module")
def members(data: Path) -> list[Trained]:
    torch.manual_seed(0)
    member = Member(backbone="test_resnet", size=32)
    network = build_network(member, num_classes=4).eval()
    network.head.classifier.weight.data *= 20
    return [Trained(network, member, read_manifest(data).classes, 0.0)]


def chosen(hits: list[np.ndarray], single: np.ndarray, target: np.ndarray, confidence: float = 0.9) -> CropChoice:
    candidates = [Export(crops=10, enlarge=(ratio,)) for ratio in (1.0, 1.25, 1.5)]
    one = Export(crops=1, enlarge=(1.5,))
    return choose_ratio(candidates, one, np.stack(hits), single, target, confidence=confidence)


def test_the_smallest_ratio_within_one_standard_error_is_taken() -> None:
    target, rng = np.arange(600) % 6, np.random.default_rng(0)
    best = rng.random(600) < 0.7
    near, poor = best.copy(), best & (rng.random(600) < 0.8)
    near[np.flatnonzero(best)[:5]] = False
    near[np.flatnonzero(~best)[:4]] = True
    single = best & (rng.random(600) < 0.5)
    choice = chosen([poor, near, best], single, target)
    assert (choice.settings.crops, choice.settings.enlarge) == (10, (1.25,))
    assert [(each.crops, each.enlarge) for each in choice.tried] == [(10, 1.0), (10, 1.25), (10, 1.5), (1, 1.5)]
    expected = [np.mean([hit[target == c].mean() for c in range(6)]) for hit in (poor, near, best, single)]
    assert [each.mean_class for each in choice.tried] == pytest.approx(expected, abs=1e-6)
    draws = np.random.default_rng(0)
    rows = [draws.integers(600, size=600) for _ in range(200)]
    error = np.std([(best[r] * 1.0 - near[r]).mean() for r in rows])  # classes are even
    assert choice.tried[1].error == pytest.approx(error, rel=0.2)
    assert expected[2] - error <= expected[1] < expected[2]
    assert choice.tried[2].error == 0
    assert choice.gain is not None
    assert (choice.gain.before, choice.gain.after) == pytest.approx((expected[3], expected[1]))


def test_one_view_is_enough_where_crops_prove_nothing() -> None:
    target, rng = np.arange(60) % 6, np.random.default_rng(1)
    hits = [rng.random(60) < 0.7 for _ in range(3)]
    best = max(hits, key=np.sum)
    choice = chosen(hits, best, target)
    assert (choice.settings.crops, choice.settings.enlarge) == (1, (1.5,))
    assert choice.gain is not None
    assert not choice.gain.stays
    assert chosen(hits, best, target, confidence=0.0).settings.crops == 10, "every step is kept"


def test_the_graph_itself_is_asked(members: list[Trained], data: Path) -> None:
    manifest = read_manifest(data)
    choice = choose_crops(members, [1.0], manifest, settings=SETTINGS, confidence=0.0)
    rows = np.flatnonzero((manifest.split == "val") & (manifest.target >= 0))
    photos = Photos(manifest, rows, side=40)
    images = torch.cat(list(photos.in_order(64)))
    for tried in choice.tried:
        settings = dataclasses.replace(SETTINGS, crops=tried.crops, enlarge=(tried.enlarge,))
        graph = DeployGraph(members, settings=settings)
        with torch.no_grad():
            first = graph(images)[0][:, 0].numpy()
        assert np.array_equal(first_classes(graph, photos), first)
        target = manifest.target[rows]
        accuracy = np.mean([(first == target)[target == c].mean() for c in np.unique(target)])
        assert tried.mean_class == pytest.approx(accuracy, abs=1e-6)
    json.dumps(choice.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    "settings",
    [dataclasses.replace(SETTINGS, enlarge=(1.5,)), dataclasses.replace(SETTINGS, crops=1)],
    ids=["one ratio", "one crop"],
)
def test_where_nothing_is_to_choose_nothing_is_asked(
    members: list[Trained], data: Path, settings: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crops, "first_classes", None)
    choice = choose_crops(members, [1.0], read_manifest(data), settings=settings, confidence=0.9)
    assert choice == CropChoice(dataclasses.replace(settings, enlarge=(1.5,)))
    assert choice.to_dict() == {"crops": settings.crops, "enlarge": 1.5, "gain": None, "tried": []}


def test_without_validation_photos_the_first_ratio_stands(members: list[Trained], variant: Variant) -> None:
    data = variant(lambda manifest: {"split": np.where(manifest.split == "val", "test", manifest.split)})
    choice = choose_crops(members, [1.0], read_manifest(data), settings=SETTINGS, confidence=0.9)
    assert choice == CropChoice(dataclasses.replace(SETTINGS, enlarge=(1.5,)))
