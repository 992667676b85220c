"""Features of a frozen backbone are computed once, by the first training that needs them."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from models.data.manifest import Manifest, read_manifest
from models.networks import inputs
from models.networks.network import Network, build_network
from models.recipe.config import Member
from models.training import features
from models.training.features import frozen_features


@pytest.fixture
def member(tmp_path: Path) -> Member:
    file = tmp_path / "weights.pt"
    torch.save(timm.create_model("test_resnet", pretrained=False).state_dict(), file)
    return Member(backbone="test_resnet", size=32, weights=str(file))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that went through a backbone."""
    seen: list[int] = []
    features = Network.features

    def counted(self: Network, pixels: Tensor) -> Tensor:
        seen.append(len(pixels))
        return features(self, pixels)

    monkeypatch.setattr(Network, "features", counted)
    return seen


def ask(manifest: Manifest, rows: list[int], member: Member, folder: Path | None, *, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    network = build_network(member, num_classes=3)
    return frozen_features(manifest, np.array(rows), network, member=member, side=48, folder=folder).views


def test_every_photo_passes_once_for_all_trainings(
    data: Path, member: Member, tmp_path: Path, passes: list[int]
) -> None:
    manifest = read_manifest(data)
    alone = ask(manifest, [3, 0], member, None)
    passes.clear()
    for seed, rows in enumerate(([3, 0], [1], [0, 1, 2, 3])):
        found = ask(manifest, rows, member, tmp_path / "shared", seed=seed)
        torch.testing.assert_close(found[:, :1], alone[:, :1] if rows[0] == 3 else found[:, :1])
    assert sum(passes) == 2 * len(manifest)  # each photo and its mirror image
    ask(manifest, [0], dataclasses.replace(member, size=40), tmp_path / "shared")
    assert sum(passes) == 4 * len(manifest)


def test_parallel_trainings_compute_them_once(data: Path, member: Member, tmp_path: Path, passes: list[int]) -> None:
    manifest = read_manifest(data)
    trainings = [threading.Thread(target=ask, args=(manifest, [0], member, tmp_path / "shared")) for _ in range(3)]
    for training in trainings:
        training.start()
    for training in trainings:
        training.join()
    assert sum(passes) == 2 * len(manifest)


def test_a_damaged_file_is_computed_again(data: Path, member: Member, tmp_path: Path, passes: list[int]) -> None:
    manifest = read_manifest(data)
    first = ask(manifest, [0, 1], member, tmp_path / "shared")
    [file] = (tmp_path / "shared").glob("*.npy")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert torch.equal(ask(manifest, [0, 1], member, tmp_path / "shared"), first)
    assert sum(passes) == 4 * len(manifest)


def test_a_killed_pass_goes_on_where_it_was(
    data: Path, member: Member, tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(inputs.EVAL_BATCH, "cpu", 4)
    monkeypatch.setattr(features, "MINUTES", 0.0)
    manifest = read_manifest(data)
    backbone = Network.features

    def killed(self: Network, pixels: Tensor) -> Tensor:
        if sum(passes) == 2 * 12:
            raise KeyboardInterrupt
        return backbone(self, pixels)

    monkeypatch.setattr(Network, "features", killed)
    with pytest.raises(KeyboardInterrupt):
        ask(manifest, [0], member, tmp_path / "shared")
    monkeypatch.setattr(Network, "features", backbone)
    found = ask(manifest, [0, 5, 14], member, tmp_path / "shared")
    assert sum(passes) == 2 * len(manifest)  # none of them twice
    torch.testing.assert_close(found, ask(manifest, [0, 5, 14], member, None))
    assert {file.suffix for file in (tmp_path / "shared").iterdir()} == {".npy", ".sum", ".lock"}


def test_a_training_reads_only_what_its_batches_need(data: Path, member: Member, tmp_path: Path) -> None:
    manifest, network = read_manifest(data), build_network(member, num_classes=3)
    rows = np.array([7, 2, 9])
    found = frozen_features(manifest, rows, network, member=member, side=48, folder=tmp_path)
    assert found.table.shape == (2, len(manifest), 96)
    assert len(found) == 3
    assert torch.equal(torch.cat([*found.evaluation(slice(1, 3))]), found.table[0, [2, 9]])
    (mixed,) = found.training([np.array([2, 0])], torch.Generator().manual_seed(0))
    for one, row in zip(mixed.photos, (9, 7), strict=True):
        assert any(torch.equal(one, found.table[view, row]) for view in (0, 1))
    with Path("/proc/self/maps").open() as maps:
        assert any(str(tmp_path) in line and line.rstrip().endswith(".npy") for line in maps)
