"""Recipes: precedence of their sources, and messages that name the field."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from models.errors import ConfigError
from models.losses import build_loss
from models.recipe.config import Loss, Member, Train, digest, from_dict, load_recipe, recipe_names, to_dict

TEXT = """
[[members]]
backbone = "test_resnet"
size = 48
mean = [0.4, 0.5, 0.6]

[[members]]
seed = 2

[train]
epochs = 7
lr = 1
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


def test_overrides_win_over_the_file_and_the_file_over_defaults(file: str) -> None:
    recipe = load_recipe(file, overrides=["train.epochs=3"])
    assert recipe.name == "mine"
    assert (recipe.train.epochs, recipe.train.lr, recipe.train.batch_size) == (3, 1.0, Train().batch_size)
    assert isinstance(recipe.train.lr, float)
    assert (recipe.members[0].size, recipe.members[1].size) == (48, 96)
    assert recipe.members[0].mean == (0.4, 0.5, 0.6)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.batch_size=5", "train.batch_size", 5),
        ("train.lr=1e-4", "train.lr", 1e-4),
        ("clean.relabel=1", "clean.relabel", 1.0),
        ("augment.flip=false", "augment.flip", False),
        ("loss.name=ce", "loss.name", "ce"),
        ('loss.name="ce"', "loss.name", "ce"),
        ("loss.params.q=0.5", "loss.params", {"q": 0.5}),
        ("loss.params={q = 0.5}", "loss.params", {"q": 0.5}),
        ("members.0.size=64", "members.0.size", 64),
        ("members.1.weights=/a b/c.safetensors", "members.1.weights", "/a b/c.safetensors"),
        ("members.1.std=[0.1, 0.2, 1]", "members.1.std", [0.1, 0.2, 1.0]),
        ("members.1.train.sampling_power=0.5", "members.1.train", {"sampling_power": 0.5}),
        ("export.enlarge=1", "export.enlarge", [1.0]),
        ("export.enlarge=[1, 1.5]", "export.enlarge", [1.0, 1.5]),
    ],
)
def test_set(file: str, override: str, path: str, value: object) -> None:
    found: Any = to_dict(load_recipe(file, overrides=[override]))
    for step in path.split("."):
        found = found[int(step)] if isinstance(found, list) else found[step]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "write it as KEY=VALUE"),
        ("train.epochs=0", r"mine\.toml: train\.epochs: 0 is outside \[1, inf\]"),
        ("train.epochs=2.5", r"train\.epochs: 2\.5 is not an integer"),
        ("train.epochs=true", r"train\.epochs: True is not an integer"),
        ("train.epochs.x=1", "'epochs' is a value, not a table"),
        ("train.lr=0", r"train\.lr: 0\.0 is outside \(0, inf\]"),
        ("train.epoch=1", r"train\.epoch: no such key \(did you mean 'epochs'\?\)"),
        ("trian.epochs=1", r"trian: no such key \(did you mean 'train'\?\)"),
        ("members.0.sizes=64", r"members\.0\.sizes: no such key \(did you mean 'size'\?\)"),
        ("members.2.size=64", "no entry '2'; the list has 2"),
        ("members.first.size=64", "no entry 'first'"),
        ("members.0=64", "'0' is a whole table; set one of its keys, such as members.0.KEY=VALUE"),
        ("members=3", "members: 3 is not a list of tables"),
        ("members=[]", "members: a recipe needs at least one"),
        ("members.0.mean=[0.5]", r"members\.0\.mean: \(0\.5,\) does not have three values"),
        ("members.0.mean=[0.5, 0.5, 'x']", r"members\.0\.mean\[2\]: 'x' is not a number"),
        ("train=3", "train: 3 is not a table"),
        (
            "train.schedule=cosin",
            r"train\.schedule: 'cosin' is not one of 'cosine', 'step' \(did you mean 'cosine'\?\)",
        ),
        ("train.step_epochs=[3, 0]", r"train\.step_epochs\[1\]: 0\.0 is outside \(0, inf\]"),
        ("train.schedule=step", r"train\.step_epochs: 14 is not within train\.epochs = 7; lower it, or train longer"),
        ("train.soup_epochs=8", r"train\.soup_epochs: 8 is above train\.epochs = 7; lower it, or train longer"),
        ("train={ema = 0.9, soup_epochs = 2}", r"train\.soup_epochs: averages weights, .*train\.ema; set one of them"),
        ("train.ema=1", r"train\.ema: 1\.0 is outside \[0, 1\)"),
        ("augment.mixup=-1", r"augment\.mixup: -1\.0 is outside \[0, inf\]"),
        ("augment.holes=0", r"augment\.holes: 0 is outside \[1, 32\]"),
        ("members.0.head=arc", r"members\.0\.head: 'arc' is not one of 'linear', 'arcface'"),
        ("members.0.centres=3", r'members\.0\.centres: 3, but members\.0\.head = "linear" has one; set head="arcface"'),
        ("export.crops=3", r"export\.crops: 3 is not one of 1, 2, 5, 10"),
        ("export.keep=4", r"export\.keep: 4 classes cannot fill export\.top_k = 5"),
        ("clean.budget=1.5", r"clean\.budget: 1\.5 is outside \[0, 1\]"),
        ("clean.use=soften", r"clean\.use: 'soften' is not one of 'drop', 'weigh'"),
        ("clean.margin=0", r"clean\.margin: no such key"),
        ("clean.member=2", r"clean\.member: 2, but the recipe has 2 members"),
        (
            "members.1.train.sampling_power=2",
            r"toml: members\.1\.train\.sampling_power: 2\.0 is outside \[0, 1\]; .*--set members\.1\.train",
        ),
        ("members.1.train.epoch=2", r"members\.1\.train\.epoch: no such key \(did you mean 'epochs'\?\)"),
        ("members.1.train=3", r"members\.1\.train: 3 is not a table"),
        ("members.1.train.best_epochs=8", r"toml: members\.1\.train\.best_epochs: 8 is above train\.epochs = 7"),
        ("members.0.loss.q=1", r"members\.0\.loss\.q: no such key; known here: name, params"),
        ("members.0.loss.params.name=x", r"members\.0\.loss\.params\.name: a recipe cannot set it"),
        ("members.0.data=dirty", r"members\.0\.data: 'dirty' is not one of 'cleaned', 'delivered'"),
        ("export.enlarge=[1, 5]", r"export\.enlarge\[1\]: 5\.0 is outside \[1, 4\]"),
        ("export.enlarge=[]", r"export\.enlarge: the list is empty; set 1\.25"),
        ("train.backbone_lr_scale=0\ntrain.start_size=0.5", r"train\.start_size: 0\.5, but a frozen backbone"),
        ("ensemble.method=best", r"ensemble\.method: 'best' is not one of 'uniform', 'weighted', 'greedy'"),
        ("finetune.learn=neck", r"finetune\.learn: 'neck' is not one of 'all', 'norms', 'head'"),
    ],
)
def test_messages_name_the_field(file: str, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(file, overrides=override.split("\n"))


def test_a_member_has_its_own_loss_and_keys_of_training(file: str) -> None:
    changes = [
        "loss.params.q=0.5",
        "members.1.loss.name=ce",
        "members.1.train={lr = 2, sampling_power = 0}",
        "members.1.data=delivered",
    ]
    recipe = load_recipe(file, overrides=changes)
    first, second = recipe.of(0), recipe.of(1)
    assert (first.loss, first.train, first.members) == (recipe.loss, recipe.train, recipe.members[:1])
    assert second.loss == Loss(name="ce", params={})
    assert second.train == Train(**vars(recipe.train) | {"lr": 2.0, "sampling_power": 0.0})
    assert second.members == (Member(seed=2),), (
        "keys that were applied are removed, so equal trainings have equal digests"
    )
    assert second.of(0) == second
    assert from_dict(json.loads(json.dumps(to_dict(recipe)))).of(1) == second
    params = load_recipe(file, overrides=["loss.name=agce", "members.1.loss.params.q=0.3", "clean.member=1"])
    assert params.of(1).loss == Loss(name="agce", params={"q": 0.3})
    assert params.of(1).clean.member == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["meta.photos=val", "augment.cutmix=1"],
            r"meta\.photos: cannot be combined with mixed photos; set augment\.mixup=0",
        ),
        (["train.har=1", "members.1.head=arcface"], r'train\.har: works with members\.head = "linear" only; set har=0'),
        *(
            (
                ["train.backbone_lr_scale=0", f"augment.{key}"],
                rf"augment\.{key.split('=')[0]}: has no effect on a frozen",
            )
            for key in ("hue_deg=20", "flip_vertical=true", "blur=0.5", "holes=2", "cutmix=1")
        ),
    ],
)
def test_keys_that_exclude_each_other_are_refused(file: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(file, overrides=overrides)
    for override in overrides:
        load_recipe(file, overrides=[override])


def test_a_message_says_how_to_correct_a_value(file: str) -> None:
    with pytest.raises(ConfigError, match=r"correct it in the recipe or with --set members\.1\.size="):
        load_recipe(file, overrides=["members.1.size=8"])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("[train\nepochs = 1", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"broken\.toml: not valid TOML in UTF-8 .*line 1"):
        load_recipe(str(broken))
    broken.write_bytes(b"name = '\xff'")
    with pytest.raises(ConfigError, match=r"broken\.toml: not valid TOML in UTF-8 .*utf-8"):
        load_recipe(str(broken))
    with pytest.raises(ConfigError, match=r"no recipe 'nothing'; known: "):
        load_recipe("nothing")


def test_the_recipes_that_ship_load_with_a_loss_that_exists() -> None:
    assert {"demo", "robust"} <= set(recipe_names())
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name
        build_loss(recipe.loss.name, num_classes=3, **recipe.loss.params)


def test_a_recipe_survives_json(file: str) -> None:
    recipe = load_recipe(file)
    assert from_dict(json.loads(json.dumps(to_dict(recipe)))) == recipe


def test_a_digest_names_the_content_and_not_the_order() -> None:
    one = from_dict({"name": "a", "loss": {"params": {"a": 1.0, "q": 0.5}}, "train": {"lr": 1, "epochs": 2}})
    same = from_dict({"train": {"epochs": 2, "lr": 1.0}, "loss": {"params": {"q": 0.5, "a": 1.0}}, "name": "a"})
    assert digest(one, 3, "x") == digest(same, 3, "x")
    assert len(digest(one)) == 16


@pytest.mark.parametrize(
    "change",
    ["name='b'", "members.0.size=80", "members.0.args={a = 1}", "train.lr=0.1", "gate.tail=0.5", "loss.params.q=1"],
)
def test_a_digest_changes_with_every_value(file: str, change: str) -> None:
    assert digest(load_recipe(file, overrides=[change])) != digest(load_recipe(file))


def test_a_digest_tells_its_parts_apart() -> None:
    assert len({digest("ab", "c"), digest("a", "bc"), digest("abc"), digest(["ab", "c"]), digest(1), digest("1")}) == 6


def test_a_digest_is_the_same_tomorrow() -> None:
    """Cached results are found by it after a restart, so it must not depend on a hash seed or a clock."""
    plain = json.dumps([{"name": "ce", "params": {"q": 0.5}}, "x", 1, None])
    expected = hashlib.sha256(plain.encode()).hexdigest()[:16]
    assert digest(Loss(name="ce", params={"q": 0.5}), "x", 1, None) == expected
