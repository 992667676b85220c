"""Every loss trains a network through `train`, with its options, and leaves complete files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import pytest

from models.losses import LOSSES
from models.recipe.config import Loss, Recipe
from models.training.job import Job
from models.training.train import load_network, train

EARLY: dict[str, dict[str, Any]] = {  # settings with which two epochs reach the late part of a method
    "truncated_gce": {"start_epoch": 1, "every": 1, "k": 0.2},
    "car": {"start_epoch": 1, "every": 1},
    "marvel": {"start_epoch": 1, "run": 1},
    "marvel+": {"start_epoch": 1, "run": 1},
    "aum": {"decision_epoch": 1},
}


def run(
    data: Path, recipe: Recipe, out: Path, name: str, *, head: Literal["linear", "arcface"] = "linear", **params: Any
) -> list[dict[str, float]]:
    """Lines of metrics.jsonl of a training of two epochs on frozen features."""
    out.mkdir(exist_ok=True)
    settings = dataclasses.replace(recipe.train, epochs=2, backbone_lr_scale=0.0)
    members = (dataclasses.replace(recipe.members[0], head=head),)
    changed = dataclasses.replace(recipe, loss=Loss(name=name, params=params), train=settings, members=members)
    train(Job(data=data, recipe=changed, member=0, out=out))
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", sorted(LOSSES.components))
def test_it_trains(name: str, data: Path, recipe: Recipe, tmp_path: Path) -> None:
    first, last = run(data, recipe, tmp_path, name, **EARLY.get(name, {}))
    assert first["loss"] != last["loss"]
    trained = load_network(tmp_path / "network.pt")
    assert all(value.isfinite().all() for value in trained.network.state_dict().values())
    assert (tmp_path / "scores.parquet").exists()
    assert (tmp_path / "samples.parquet").exists() == (name in EARLY)


@pytest.mark.parametrize("name", ["ce", "ce+sr", "nce+agce", "bi_tempered", *sorted(EARLY)])
def test_it_trains_with_a_margin(name: str, data: Path, recipe: Recipe, tmp_path: Path) -> None:
    plain = run(data, recipe, tmp_path / "plain", name, **EARLY.get(name, {}))
    strict = run(data, recipe, tmp_path / "strict", name, head="arcface", **EARLY.get(name, {}))
    assert strict[0]["loss"] != plain[0]["loss"]
    assert strict[0]["loss"] != strict[1]["loss"]
    saved = load_network(tmp_path / "strict" / "network.pt").network.state_dict()
    assert all(value.isfinite().all() for value in saved.values())


@pytest.mark.parametrize(
    "options",
    [
        {"warmup_ce_epochs": 1, "blend_epochs": 1},
        {"logit_bias": 2.0, "logit_adjustment": 1.0},
        {"init_match": "initial"},
        {"init_match": "batch"},
    ],
)
@pytest.mark.parametrize("name", ["agce", "marvel+"])
def test_it_trains_with_the_options_of_every_loss(
    name: str, options: dict[str, Any], data: Path, recipe: Recipe, tmp_path: Path
) -> None:
    own = {**EARLY[name], "base": "agce"} if name in EARLY else {}
    plain = run(data, recipe, tmp_path / "plain", name, **own)
    changed = run(data, recipe, tmp_path / "options", name, **own, **options)
    assert [line["loss"] for line in changed] != [line["loss"] for line in plain]
