"""timm's own weights: found in a cache of the hub that a test writes, with the hub's own client, without a network."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from contract.environment import process_variables
from durable import sha256
from models.errors import ConfigError, WeightsMismatch
from models.networks.network import build_network
from models.networks.pretrained import full_name, licence_of, origin, settings_of, weights_file
from models.recipe.config import Member, Recipe, digest, from_dict, load_recipe, to_dict, training_inputs
from models.training.command import REFUSED
from models.training.weights import resolve
from tests import hub

NAME = "test_resnet.r160_in1k"
OURS = Member(backbone=NAME, size=32, weights="pretrained")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, with no way to the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "home"


def test_a_member_starts_from_the_weights_in_the_cache(home: Path) -> None:
    file = hub.fill(home, NAME)
    network = build_network(OURS, num_classes=3)
    given = hub.state_of(NAME)
    assert weights_file(NAME) == file
    assert all(torch.equal(value, given[key]) for key, value in network.backbone.state_dict().items())
    assert network.mean.flatten().tolist() == list(settings_of(NAME).mean)


def test_a_name_without_a_tag_means_timms_default(home: Path) -> None:
    file = hub.fill(home, NAME)
    recipe = resolve(Recipe(name="r", members=(dataclasses.replace(OURS, backbone="test_resnet"),)))
    assert recipe.members[0].backbone == NAME
    assert recipe.members[0].weights_sha256 == sha256(file)
    assert resolve(recipe) == recipe


def test_a_file_is_pinned_as_well(tmp_path: Path) -> None:
    torch.save(hub.state_of("test_resnet"), tmp_path / "w.pth")
    member = Member(backbone="test_resnet", weights=str(tmp_path / "w.pth"))
    found = resolve(Recipe(name="r", members=(member, Member()))).members
    assert [each.weights_sha256 for each in found] == [sha256(tmp_path / "w.pth"), ""]
    assert found[0].backbone == "test_resnet"


def test_other_weights_make_another_training(home: Path) -> None:
    keys = []
    for seed in (1, 2):
        hub.fill(home, NAME, seed=seed)
        keys.append(digest(*training_inputs(resolve(Recipe(name="r", members=(OURS,))).of(0))))
    assert keys[0] != keys[1]


def test_a_machine_with_other_weights_is_refused(home: Path) -> None:
    hub.fill(home, NAME)
    member = resolve(Recipe(name="r", members=(OURS,))).members[0]
    hub.fill(home, NAME, seed=2)  # as on another machine
    with pytest.raises(
        WeightsMismatch, match=r"has the SHA-256 \w{12}\.\.\., but members\.weights_sha256 demands \w{12}"
    ):
        build_network(member, num_classes=2)
    with pytest.raises(WeightsMismatch, match=r"^members\.0\.weights: .* members\.0\.weights_sha256 demands"):
        resolve(Recipe(name="r", members=(member,)))


OFFLINE = (
    r"members\.1\.weights: timm's weights of test_resnet\.r160_in1k are not in .*home/hub, and HF_HUB_OFFLINE forbids a "
    r"download; run `hf download timm/test_resnet\.r160_in1k` where there is a network and copy "
    r"models--timm--test_resnet\.r160_in1k here, name a file with --weights FILE, or start from random weights with "
    r'--weights ""'
)


def test_without_cache_and_network_the_ways_out_are_told(home: Path) -> None:
    recipe = Recipe(name="r", members=(Member(), OURS))
    with pytest.raises(WeightsMismatch, match=rf"^{OFFLINE}$"):
        resolve(recipe)


def test_an_unreachable_hub_is_told_within_seconds(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    start = time.monotonic()
    with pytest.raises(WeightsMismatch, match=r"are not in .*hub, and a download failed \(.+\); run `hf download"):
        weights_file(NAME)
    assert time.monotonic() - start < 5


def test_the_variables_of_the_hub_count(tmp_path: Path) -> None:
    """The command that a run starts, in an environment of its own."""
    recipe = to_dict(Recipe(name="r", members=(Member(), OURS)))
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    command = [sys.executable, "-m", "models.training.weights", "--recipe", tmp_path / "recipe.json", "--out", tmp_path]
    variables = process_variables(HF_HOME=str(tmp_path / "home"))
    variables.pop("HF_HUB_CACHE", None)
    refused = subprocess.run(command, env=variables | {"TRANSFORMERS_OFFLINE": "1"}, capture_output=True, text=True)
    assert refused.returncode == REFUSED
    assert re.fullmatch(OFFLINE, refused.stdout.strip())
    file = hub.fill(tmp_path / "home", NAME)
    subprocess.run(command, env=variables | {"HF_HUB_OFFLINE": "1"}, check=True)
    found = from_dict(json.loads((tmp_path / "recipe.json").read_text()))
    assert found.members[1].weights_sha256 == sha256(file)


def test_a_tag_that_timm_does_not_have_is_refused_with_those_that_it_has() -> None:
    with pytest.raises(
        ConfigError, match=r"^members\.backbone: timm .* has no weights of 'test_resnet\.v2'; take test_resnet\.r160"
    ):
        settings_of("test_resnet.v2")
    with pytest.raises(ConfigError, match=r"has no model 'resent18' \(did you mean resnet18"):
        settings_of("resent18")


def test_every_recipes_weights_exist_under_a_licence_for_shops() -> None:
    for name in ("aliproducts", "frozen", "modern", "robust", "tuned"):
        for member in load_recipe(name).members:
            settings = settings_of(member.backbone)
            assert member.weights == "pretrained"
            assert full_name(settings) == member.backbone  # with its tag, so that another timm means the same weights
            assert licence_of(settings) == "apache-2.0"
            assert origin(settings).startswith("timm/")
    assert licence_of(settings_of("vit_base_patch16_dinov3.lvd1689m")) == "dinov3-license"
