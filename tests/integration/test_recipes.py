"""Every recipe that ships, through the whole flow at toy size: its own settings, with tiny networks and few epochs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
from safetensors.torch import save_model

from flows.registry.repository import repository
from flows.retrain import retrain
from flows.workspace import Workspace
from models.networks.network import feature_width
from models.recipe.config import Member, load_recipe
from tests.integration.test_retrain import ANY, SKUS, copy, delivered

__all__ = ["delivered"]  # the fixture
pytestmark = [pytest.mark.dvc, pytest.mark.prefect, pytest.mark.triton]

TINY = ("test_resnet", "test_byobnet", "test_efficientnet")  # one for each member
SHORT = ("train.epochs=1", "clean.epochs=1", "clean.folds=2", "export.input_size=64", "export.crops=2")
ANYTHING = (*ANY, "gate.above_chance=-1", "gate.class_floor=0")
LONG = (
    "train.balanced_epochs=0",
    "train.step_epochs=[]",
    "train.warmup_epochs=0",
    "clean.rounds=1",
    "finetune.epochs=1",
)


def toy(name: str, weights: Path) -> list[str]:
    """Overrides that leave of a recipe everything but the size of its networks and the length of its training."""
    found = [*SHORT, *ANYTHING]
    for number, member in enumerate(load_recipe(name).members):
        backbone = TINY[number % len(TINY)]
        found += [f"members.{number}.{key}={value}" for key, value in
                  (("backbone", backbone), ("weights", weights / f"{backbone}.safetensors"), ("size", 32))]  # fmt: skip
        found += [f"members.{number}.train.epochs=1"] if "epochs" in member.train else []
    if name == "frozen":
        found.append(f"members.0.name_vectors={name_vectors(weights)}")
    return [*found, *LONG] if name == "aliproducts" else found


def name_vectors(folder: Path) -> Path:
    """A file with vectors of the names of all products but the first, as a text tower of the first backbone would make it."""
    width = feature_width(Member(backbone=TINY[0], size=32))
    vectors = np.random.default_rng(0).normal(size=(len(SKUS) - 1, width)).tolist()
    file = folder / "names.parquet"
    pq.write_table(pa.table({"class": [sku.label for sku in SKUS[1:]], "vector": vectors}), file)
    return file


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with weights of tiny backbones."""
    folder = tmp_path_factory.mktemp("weights")
    for backbone in TINY:
        save_model(timm.create_model(backbone), str(folder / f"{backbone}.safetensors"))
    return folder


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name",
    ["frozen", *(pytest.param(name, marks=pytest.mark.slow) for name in ("modern", "robust", "tuned", "aliproducts"))],
)
def test_a_recipe_that_ships_makes_a_model(name: str, delivered: Workspace, weights: Path, tmp_path: Path) -> None:
    shop = copy(delivered, tmp_path / "shop")
    report = retrain(shop, load_recipe(name, overrides=toy(name, weights)))
    assert report.model_version == 1
    assert {answer.label for answer in report.seen} <= {sku.label for sku in SKUS}
    lineage = repository(shop).lineage(1)
    assert len({stage for stage in lineage["stages"] if stage.startswith("balance-")}) == len(load_recipe(name).members)
