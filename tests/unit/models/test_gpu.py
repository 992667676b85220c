"""Training and re-balancing on a CUDA device; skipped if there is none."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from flows.run.launch import run_child
from models.evaluation.scores import read_scores
from models.recipe.config import Augment, Loss, Meta, Recipe, to_dict
from models.training.decoupling import rebalance
from models.training.job import Job
from models.training.train import train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]


def test_a_network_is_trained_and_balanced_on_the_gpu(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    trained, balanced = tmp_path / "trained", tmp_path / "balanced"
    for out in (trained, balanced):
        out.mkdir()
    before = torch.cuda.max_memory_allocated()
    train(Job(data=data, recipe=recipe, member=0, out=trained))
    (tmp_path / "recipe.json").write_text(json.dumps(to_dict(recipe)))
    rebalance(trained / "network.pt", data=data, recipe=tmp_path / "recipe.json", member=0, out=balanced)
    assert torch.cuda.max_memory_allocated() > before
    for out in (trained, balanced):
        assert np.isfinite(read_scores(out / "scores.parquet").probs).all()


@pytest.mark.parametrize("name", ["gce", "sce", "polysoft", "bi_tempered"])
def test_a_losss_numbers_are_learnt_on_the_gpu(data: Path, recipe: Recipe, tmp_path: Path, name: str) -> None:
    learning = dataclasses.replace(recipe, loss=Loss(name=name), meta=Meta(photos="val", every=1, head_only=False))
    train(Job(data=data, recipe=learning, member=0, out=tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    numbers = [{key: value for key, value in line.items() if key.startswith("loss.params.")} for line in lines]
    assert numbers[0]
    assert all(first != last for first, last in zip(numbers[0].values(), numbers[-1].values(), strict=True))


def test_the_techniques_of_training_work_on_the_gpu(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    everything = dataclasses.replace(
        recipe,
        members=(dataclasses.replace(recipe.members[0], head="arcface", centres=2),),
        augment=Augment(mixup=0.5, cutmix=0.5, blur=0.5, hue_deg=20.0, flip_vertical=True, holes=3),
        train=dataclasses.replace(recipe.train, optimizer="sgd", ema=0.9),
    )
    for name, rows in (("whole", 0), ("pieces", 3)):
        (tmp_path / name).mkdir()
        settings = dataclasses.replace(everything, train=dataclasses.replace(everything.train, head_rows=rows))
        train(Job(data=data, recipe=settings, member=0, out=tmp_path / name))
        assert np.isfinite(read_scores(tmp_path / name / "scores.parquet").probs).all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices here")
def test_two_gpus_learn_as_one_does(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    """Batch norm takes its statistics over both, so only rounding differs."""
    (tmp_path / "recipe.json").write_text(json.dumps(to_dict(recipe)))
    losses = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        words = ["--data", data, "--recipe", tmp_path / "recipe.json", "--member", 0, "--out", out]
        run_child("models.training.train", words, say=lambda line: None, workers=workers)
        losses.append([json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
