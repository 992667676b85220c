"""Names of backbones, read from timm's source without an import."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import timm

from models.errors import ConfigError
from models.networks.backbones import ENTRY, _source, check_backbones
from models.recipe.config import load_recipe
from tests.command_line import ROOT


def test_the_source_has_the_names_that_timm_registers() -> None:
    assert set(ENTRY.findall(_source())) == set(timm.list_models())


def test_an_unknown_name_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(
        ConfigError, match=r"^members\.1\.backbone: timm .* has no model 'resent18' \(did you mean resnet18,"
    ):
        check_backbones(load_recipe("smoke", overrides=["members.1.backbone=resent18"]))


@pytest.mark.parametrize("name", ["resnet50.a1_in1k", "resnet50.of_our_own", "tv_resnet50"])
def test_names_of_weights_and_former_names_pass(name: str) -> None:
    recipe = load_recipe("smoke")
    check_backbones(replace(recipe, members=(replace(recipe.members[0], backbone=name),)))
    assert timm.is_model(name)


def test_every_shipped_recipe_passes_without_torch() -> None:
    script = """
import sys
sys.modules["torch"] = None
from models.networks.backbones import check_backbones
from models.recipe.config import RECIPES, load_recipe
for path in RECIPES.glob("*.toml"):
    check_backbones(load_recipe(path.stem))
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
