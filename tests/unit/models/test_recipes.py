"""Every shipped recipe learns: at toy size, from weights in a cache that the test writes."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image

from flows.delivery.build import build_version
from models.recipe.config import RECIPES, Recipe, load_recipe, recipe_names
from models.training.check import check
from models.training.job import Job
from models.training.train import load_network, train
from models.training.weights import resolve
from tests import hub

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
# Backbones of the size of a test, in place of those of the recipe, of the same nature: convolutional, or a transformer.
TINY = {"vit": "test_vit.r160_in1k", "deit": "test_vit.r160_in1k", "resnet": "test_resnet.r160_in1k"}
OTHERWISE = "test_efficientnet.r160_in1k"
EPOCHS = 8
TOY = (
    *(f"train.{key}" for key in (f"epochs={EPOCHS}", "batch_size=6", "balanced_epochs=0", "warmup_epochs=0", "workers=1",
                                 "step_epochs=[3, 4]", "threads=1")),
    "augment.mixup=0", "clean.folds=2", "clean.epochs=2", "finetune.epochs=0", "export.input_size=64",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data version of three products that differ by their colour; 12 photos are trained on, two batches."""
    folder = tmp_path_factory.mktemp("recipes")
    draw = np.random.default_rng(0)
    for label, colour in COLOURS.items():
        for number in range(6):
            split = folder / "source" / ("test" if number > 4 else "val" if number > 3 else "train") / label
            split.mkdir(parents=True, exist_ok=True)
            pixels = np.clip(draw.normal(colour, 25, (48, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(buffer := io.BytesIO(), "PNG")
            (split / f"{number}.png").write_bytes(buffer.getvalue())
    build_version(folder / "source", base=None, out=folder / "version")
    return folder / "version"


def toy(name: str, *more: str) -> Recipe:
    """The recipe with two batches an epoch, and with tiny backbones where its own start from pretrained weights."""
    overrides = [*more, *TOY]
    for number, member in enumerate(load_recipe(name).members):
        overrides += [f"members.{number}.size=32"]
        if member.weights:
            tiny = next((each for family, each in TINY.items() if member.backbone.startswith(family)), OTHERWISE)
            overrides += [f"members.{number}.backbone={tiny}"]
        overrides += [f"members.{number}.train.{key}" for key in member.train and TOY_OF_MEMBER]
    return load_recipe(name, overrides=overrides)


TOY_OF_MEMBER = (f"epochs={EPOCHS}", "batch_size=6", "warmup_epochs=0", "balanced_epochs=0")


# What the recipe's own comment says for fine-tuning.
FINE_TUNED = tuple(re.findall(r"--set (train\S+)", (RECIPES / "modern.toml").read_text(encoding="utf-8")))


@pytest.mark.parametrize(("name", "more"), [*((name, ()) for name in recipe_names()), ("modern", FINE_TUNED)])
def test_a_recipe_learns(
    name: str, more: tuple[str, ...], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for backbone in {OTHERWISE, *TINY.values()}:
        hub.fill(tmp_path, backbone)
    recipe = resolve(toy(name, *more))
    assert not more or recipe.train.backbone_lr_scale > 0
    check(recipe, data=data)
    for member, each in enumerate(recipe.members):
        (out := tmp_path / str(member)).mkdir()
        train(Job(data=data, recipe=recipe, member=member, out=out))
        losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert len(losses) == EPOCHS
        assert losses[-1] < losses[0], each.backbone
        assert load_network(out / "network.pt").member.weights_sha256 == each.weights_sha256
