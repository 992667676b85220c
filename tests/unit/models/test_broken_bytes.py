"""Flipped bits in the files of a training: reading names the file, or returns exactly what was written (I21)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from models.errors import CheckpointMismatch
from models.recipe.config import Recipe
from models.training import checkpoint
from models.training.job import Job
from models.training.train import load_network, train
from tests.breaking import ways
from tests.unit.models.test_memory import OLD, OLD_CLASSES, filled, memory

pytestmark = pytest.mark.faults


def never_wrong(path: Path, read: Callable[[], Any], *, flips: int) -> None:
    """Breaks a file in every way: reading must name it in an error, or return what was written."""
    whole, refused = read(), 0
    for way in ways(path, flips=flips):
        try:
            found = read()
        except CheckpointMismatch as error:
            found, refused = str(error), refused + 1
        assert found == whole or str(path) in found, way
    assert refused > flips / 2
    assert read() == whole


def test_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"key": "a", "epoch": 3, "network": {"weight": torch.arange(3000.0)}})

    def read() -> tuple[Any, ...]:
        content = checkpoint.load(path)
        return content["key"], content["epoch"], content["network"]["weight"].tolist()

    never_wrong(path, read, flips=200)


def test_the_memory_of_a_loss(tmp_path: Path) -> None:
    path = tmp_path / "samples.parquet"
    filled().write(path)

    def read() -> tuple[Any, ...]:
        later = memory(OLD, OLD_CLASSES)
        return later.carry(path), {name: values.tolist() for name, values in later.values.items()}

    never_wrong(path, read, flips=200)


def test_what_a_training_left(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    short = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, epochs=1))
    train(Job(data=data, recipe=short, member=0, out=tmp_path))
    path = tmp_path / "network.pt"

    def read() -> tuple[Any, ...]:
        trained = load_network(path)
        return trained.member, trained.classes, [value.tolist() for value in trained.network.state_dict().values()]

    never_wrong(path, read, flips=12)
