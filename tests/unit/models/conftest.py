"""A tiny data version with real shards, and a recipe that trains on it in a second."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.delivery.build import build_version
from models.data.manifest import Manifest, read_manifest, write_labels
from models.recipe.config import Recipe, from_dict
from tests.deliveries import deliver

SIDE = 40
CLASSES = {"apple": 12, "bean": 9, "corn": 6, "dill": 1}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data version with four long-tailed classes, one of them with a single photo; read only."""
    source = deliver(tmp_path_factory.mktemp("source"), CLASSES, side=SIDE)
    out = tmp_path_factory.mktemp("version") / "data"
    build_version(source, base=None, out=out)
    return out


@pytest.fixture(scope="session")
def unlabelled(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data version with five photos without a label more; read only."""
    source = deliver(tmp_path_factory.mktemp("source"), {"any": 5}, first_seed=500, side=SIDE)
    out = tmp_path_factory.mktemp("version") / "unlabelled"
    build_version(source, base=data, out=out, unlabelled=True)
    return out


@pytest.fixture
def variant(data: Path, tmp_path: Path) -> Callable[[Callable[[Manifest], dict[str, Any]]], Path]:
    """Function that makes a data version of the same photos with other labels, splits or decisions."""

    def make(change: Callable[[Manifest], dict[str, Any]]) -> Path:
        copy = Path(shutil.copytree(data, tmp_path / "variant"))
        manifest = read_manifest(data)
        write_labels(copy, dataclasses.replace(manifest, **change(manifest)))
        return copy

    return make


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    return from_dict(
        {
            "name": "tiny",
            "members": [{"backbone": "test_resnet", "size": 32, "seed": 3}],
            "train": {"epochs": 3, "batch_size": 8},
            "clean": {"epochs": 1, "folds": 2},
            "balance": {"epochs": 2},
            "export": {"input_size": SIDE},
        }
    )
