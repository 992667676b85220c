"""Memory and disk that a training certainly needs, and the refusal of what cannot fit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from models.data import machine
from models.errors import ConfigError
from models.networks.network import build_network, count_parameters
from models.recipe.config import Member, Recipe, from_dict
from models.recipe.learning import Train
from models.training import check
from models.training.room import training_bytes

RECIPE = {"name": "r", "members": [{"backbone": "test_resnet", "size": 32}], "clean": {"folds": 2}}


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def recipe(**train: object) -> Recipe:
    return from_dict(RECIPE | {"train": train})


def test_a_training_needs_its_parameters_four_times_and_two_tables_of_logits() -> None:
    network = build_network(Member(backbone="test_resnet", size=32), num_classes=100)
    parameters = count_parameters(network)
    assert training_bytes(network, Train(batch_size=64), num_classes=100) == 4 * (4 * parameters + 2 * 64 * 100)
    assert training_bytes(network, Train(optimizer="sgd", head_rows=8), num_classes=100) == 4 * (
        3 * parameters + 2 * 8 * 100
    )
    head = count_parameters(network.head)
    frozen = training_bytes(network, Train(backbone_lr_scale=0.0, batch_size=64), num_classes=100)
    assert frozen == 4 * (4 * head + parameters - head + 2 * 64 * 100)


def test_what_memory_cannot_hold_is_refused_with_figures_and_ways_out(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "available_bytes", lambda: 5_000_000)
    monkeypatch.setattr(machine, "sharing", lambda: 2)
    check.check(recipe(), data=data)
    with pytest.raises(ConfigError, match=r"members\.0: a training of [\d,]+ parameters on 4 classes needs at least "
                       r"0\.0 GB of memory, and 2 trainings side by side 0\.\d GB; this machine has .* left"):  # fmt: skip
        check.check(recipe(), data=data, present=0)


def test_a_training_that_fits_alone_is_told_so(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_bytes", lambda: 10**9)
    monkeypatch.setattr(machine, "sharing", lambda: 1000)
    with pytest.raises(ConfigError, match=r'; set CLEANSHELF_PARALLEL=1, set train\.optimizer="sgd", free some'):
        check.check(recipe(), data=data, present=0)


def test_what_the_disk_cannot_hold_is_refused_unless_most_of_it_is_there(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(100, 99, 1000))
    with pytest.raises(ConfigError, match=r"take at least 0\.\d GB, and the disk of .* has 0\.0 GB left"):
        check.check(recipe(), data=data, present=0)
    check.check(recipe(), data=data, present=10**9)
