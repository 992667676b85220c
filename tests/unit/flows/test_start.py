"""The start of a retraining: what would be refused at its end is told before it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from flows.cli.app import with_weights
from flows.errors import InputError
from flows.steps.start import check_contract
from flows.workspace import Workspace
from models.errors import ConfigError
from models.recipe.config import Export, Recipe, load_recipe
from serving.repository.repository import ModelRepository
from serving.signature import Signature
from tests.graphs import write_versions


def test_a_clash_with_the_current_models_contract_is_told(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    recipe = Recipe(name="any")
    check_contract(workspace, recipe)  # nothing answers yet
    models = ModelRepository(workspace.repository)
    write_versions(models, tmp_path, 1)
    models.configure([1])
    current = Signature.read(models.path(1) / "model.onnx")
    export = Export(input_size=current.size, top_k=current.k)
    check_contract(workspace, dataclasses.replace(recipe, export=export))
    for key, value in (("input_size", current.size), ("top_k", current.k)):
        clash = dataclasses.replace(recipe, export=dataclasses.replace(export, **{key: value + 1}))
        message = rf"^export\.{key}: {value + 1}, but model version 1, .* set export\.{key}={value}, or"
        with pytest.raises(InputError, match=message):
            check_contract(workspace, clash)


def test_weights_for_all_members(tmp_path: Path) -> None:
    file = tmp_path / 'my "own" weights.pt'
    file.touch()
    assert with_weights("frozen", ["train.epochs=3"], None) == ["train.epochs=3"]
    overrides = with_weights("frozen", ["members.1.weights=other.pt"], str(file))
    assert [each.weights for each in load_recipe("frozen", overrides=overrides).members] == [str(file), "other.pt"]
    with pytest.raises(ConfigError, match=r"--weights .*none\.pt: there is no such file"):
        with_weights("frozen", [], str(tmp_path / "none.pt"))
    for word in ("pretrained", ""):
        members = load_recipe("robust", overrides=with_weights("robust", [], word)).members
        assert [each.weights for each in members] == [word, word]
