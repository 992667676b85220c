"""Checks of a recipe and its data before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flows.delivery.build import build_version
from models.errors import ConfigError, ManifestError, ModelError, WeightsMismatch
from models.recipe.config import load_recipe
from models.training.check import check
from tests.deliveries import deliver


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    build_version(deliver(folder / "source", {"a": 6, "b": 6, "c": 1}), base=None, out=folder / "version")
    return folder / "version"


DEIT = "members.0.backbone=deit_tiny_patch16_224\nfinetune.epochs=1\nfinetune.enlarge=1.25"
SHARP = (
    "finetune.epochs=1",
    "finetune.enlarge=1.5",
    "members.0.backbone=deit_tiny_patch16_224",
    "members.1.train.start_size=0.5",
)


def test_what_can_be_trained_passes(data: Path) -> None:
    check(load_recipe("smoke"), data=data)
    check(load_recipe("smoke", overrides=SHARP), data=data)


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("members.1.backbone=resent18", ConfigError, r"^members\.1\.backbone: .*'resent18' \(did you mean resnet18"),
        (
            "members.1.args={nonsense=3}",
            ConfigError,
            r"^members\.1\.args.*test_byobnet at 32 px: .*nonsense.*correct them$",
        ),
        ("loss.name=gcee", ConfigError, r"loss\.name: no loss 'gcee' \(did you mean 'gce'\?\); known: .*gce, .*$"),
        ("loss.params.p=1", ConfigError, r"loss\.params\.p: 'gce' has no such parameter.*; it takes q, .*$"),
        ("loss.params.q=3", ConfigError, r"loss\.params\.q: 3\.0 is outside \(0, 1\]; .*--set loss\.params\.q="),
        (
            "members.0.weights=none.safetensors",
            WeightsMismatch,
            r"^members\.0\.weights: none\.safetensors does not exist",
        ),
        ("train.backbone_lr_scale=0", ConfigError, r"^members\.0\.weights: none are given, .* --weights FILE \(all"),
        ("members.1.train.backbone_lr_scale=0", ConfigError, r"^members\.1\.weights: none are given"),
        (
            "members.0.weights=models/training/train.py",
            WeightsMismatch,
            r"models/training/train\.py cannot be read \(UnpicklingError\)",
        ),
        ("members.1.loss.name=gcee", ConfigError, r"^members\.1\.loss\.name: no loss 'gcee'"),
        ("members.1.loss.params.q=3", ConfigError, r"^members\.1\.loss\.params\.q: 3\.0 is outside \(0, 1\]"),
        ("members.1.train.photo_weights=none.csv", ConfigError, r"^members\.1\.train\.photo_weights: none\.csv"),
        (
            "members.1.train.batch_size=3\nmembers.1.train.workers=2",
            ConfigError,
            r"^members\.1\.train\.batch_size: 3 of \d+ photos",
        ),
        (DEIT, ConfigError, r"deit_tiny_patch16_224 at 40 px: its patches of 16 px would not cover the photo"),
        (
            f"{DEIT}\nfinetune.enlarge=1.5\ntrain.start_size=0.5",
            ConfigError,
            r"train\.start_size: 0\.5 gives 16 px, but deit_.* takes only 32 px",
        ),
        (
            "clean.params.margin=1",
            ConfigError,
            r"clean\.params\.margin: 'log_margin' has no such parameter.*it takes threshold",
        ),
        (
            "clean.params.prior=2",
            ConfigError,
            r"clean\.params\.prior: 2\.0 is outside \[0, 1\]; .*--set clean\.params\.prior=",
        ),
        ("clean.folds=12", ConfigError, r"clean\.folds: fold \d+ of 12 would score 0 of \d+ train photos"),
    ],
)
def test_a_recipe_that_cannot_be_trained(data: Path, override: str, error: type[ModelError], message: str) -> None:
    recipe = load_recipe("smoke", overrides=override.split("\n"))
    with pytest.raises(error, match=message) as caught:
        check(recipe, data=data)
    assert "\n" not in str(caught.value)


def test_weights_of_another_network(data: Path, tmp_path: Path) -> None:
    save_file({"stem.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    for name, message in (
        ("other.safetensors", r"does not fit test_resnet: it holds 1 tensors"),
        ("tensor.pt", "state_dict"),
    ):
        recipe = load_recipe("smoke", overrides=[f"members.0.weights={tmp_path / name}"])
        with pytest.raises(WeightsMismatch, match=rf"^members\.0\.weights: .*{name} .*{message}"):
            check(recipe, data=data)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"a": 4, "b": 4}, r"labels\.parquet, column split: there is no test photo .*split=test"),
        ({"test/a": 4, "test/b": 4, "train/a": 4}, r"labels\.parquet: 1 classes have a kept train photo, .* needs 2"),
    ],
)
def test_data_that_cannot_be_trained_on(tmp_path: Path, counts: dict[str, int], message: str) -> None:
    shares = {"test_share": 0.0}
    build_version(deliver(tmp_path / "source", counts), base=None, out=tmp_path / "version", **shares)  # type: ignore[arg-type]  # passed on
    with pytest.raises(ManifestError, match=message):
        check(load_recipe("smoke"), data=tmp_path / "version")


def test_a_damaged_table_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"labels\.parquet: no such file"):
        check(load_recipe("smoke"), data=tmp_path)
