"""Averages of weights, compared with plain loops, and their batch norm statistics."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import models.training.epochs
import models.training.train
from models.data.manifest import read_manifest
from models.data.photos import Photos
from models.data.samplers import Sampler
from models.networks.inputs import Features, extract
from models.networks.network import build_network
from models.recipe.config import Recipe, Train
from models.training.averages import Average, recomputing_bn
from models.training.epochs import take_step
from models.training.job import Job, split_rows
from models.training.train import load_network, train
from models.training.train_state import seed_step

WEIGHT = "head.classifier.weight"


def walk(count: int) -> list[Tensor]:
    return list(torch.randn(count, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).cumsum(0))


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_ema_is_a_plain_loop(decay: float) -> None:
    start, *steps = walk(40)
    weight = nn.Parameter(start.clone())
    average = Average([weight], Train(ema=decay))
    expected = start
    for t, now in enumerate(steps):
        weight.data.copy_(now)
        average.end_step()
        d = min(decay, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * now
    average.end_epoch(left=0)
    average.apply()
    torch.testing.assert_close(weight.data, expected)


def test_a_soup_is_the_mean_of_the_last_epochs() -> None:
    start, *ends = walk(8)
    weight = nn.Parameter(start.clone())
    average = Average([weight], Train(epochs=7, soup_epochs=3))
    for epoch, now in enumerate(ends):
        weight.data.copy_(now)
        average.end_step()
        average.end_epoch(left=7 - epoch - 1)
    average.apply()
    torch.testing.assert_close(weight.data, torch.stack(ends[-3:]).mean(0))


def test_statistics_are_means_over_the_batches_and_all_else_answers() -> None:
    torch.manual_seed(0)
    kept, measured = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    part = nn.Sequential(nn.Dropout(0.5), measured)
    network = nn.Sequential(kept, part).train()
    network(torch.randn(9, 4))
    before = kept.running_mean.clone()  # type: ignore[union-attr]  # a norm with statistics
    batches = [3 + 2 * torch.randn(n, 4) for n in (5, 8, 2)]
    with torch.no_grad(), recomputing_bn(network, part=part):
        for batch in batches:
            network(batch)
    seen = [kept(batch) for batch in batches]
    torch.testing.assert_close(measured.running_mean, torch.stack([each.mean(0) for each in seen]).mean(0))
    torch.testing.assert_close(measured.running_var, torch.stack([each.var(0) for each in seen]).mean(0))
    assert torch.equal(kept.running_mean, before)  # type: ignore[arg-type]
    assert measured.momentum == 0.1
    assert not network.training


def run(data: Path, recipe: Recipe, out: Path, **settings: Any) -> Job:
    out.mkdir()
    changed = dataclasses.replace(recipe, train=Train(**vars(recipe.train) | settings))
    job = Job(data=data, recipe=changed, member=0, out=out)
    train(job)
    return job


def state(out: Path) -> dict[str, Tensor]:
    return load_network(out / "network.pt").network.state_dict()


@pytest.mark.parametrize("scale", [0.0, 1.0], ids=["features", "views"])
def test_what_is_saved_is_the_average(
    data: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    seen: list[dict[str, Tensor]] = []

    def step_and_record(state: Any, *args: Any, **named: Any) -> Tensor:
        if not seen:
            seen.append({key: value.clone() for key, value in state.network.named_parameters()})
        values = take_step(state, *args, **named)
        seen.append({key: value.detach().clone() for key, value in state.network.named_parameters()})
        return values

    monkeypatch.setattr(models.training.epochs, "take_step", step_and_record)
    run(data, recipe, tmp_path / "ema", backbone_lr_scale=scale, ema=0.8)
    expected = dict(seen[0])
    for t, now in enumerate(seen[1:]):
        d = min(0.8, (1 + t) / (10 + t))
        expected = {key: d * expected[key] + (1 - d) * now[key] for key in now}
    saved = state(tmp_path / "ema")
    for key, value in expected.items():
        torch.testing.assert_close(saved[key], value)
    seen.clear()
    run(data, recipe, tmp_path / "soup", backbone_lr_scale=scale, soup_epochs=2)
    steps = (len(seen) - 1) // 3
    saved = state(tmp_path / "soup")
    for key in expected:
        torch.testing.assert_close(saved[key], (seen[2 * steps][key] + seen[3 * steps][key]) / 2)


def test_the_statistics_are_those_of_the_averaged_weights(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    """Recomputed batch by batch from the saved weights, on frozen features, where only the neck has statistics."""
    job = run(data, recipe, tmp_path / "out", backbone_lr_scale=0.0, soup_epochs=2)
    manifest, trained = read_manifest(data), load_network(job.out / "network.pt")
    rows, _ = split_rows(manifest, fold=None, num_folds=2)
    inputs = extract(Photos(manifest, rows, side=40), trained.network, size=32)
    sampler = Sampler(target=manifest.target[rows], score=manifest.score[rows], settings=job.train, seed=job.seed)
    generator, means, variances = torch.Generator(), [], []
    batches = np.array_split(sampler.draw(2), -(-len(rows) // job.train.batch_size))
    for step, (batch, _) in enumerate(zip(batches, batches, strict=True)):
        seed_step(generator, job.seed, 3, step)
        view = torch.randint(2, (len(batch),), generator=generator)
        with torch.no_grad():
            given = trained.network.head.embed(inputs.views[view, torch.from_numpy(batch)])
        means.append(given.mean(0))
        variances.append(given.var(0))
    assert isinstance(inputs, Features)
    neck = trained.network.head.neck
    torch.testing.assert_close(neck.running_mean, torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(neck.running_var, torch.stack(variances).mean(0), rtol=1e-4, atol=1e-5)


def test_a_frozen_backbone_keeps_its_statistics(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    run(data, recipe, tmp_path / "out", backbone_lr_scale=0.0, ema=0.9)
    torch.manual_seed(recipe.members[0].seed)
    start = build_network(recipe.members[0], num_classes=4).state_dict()
    saved = state(tmp_path / "out")
    assert all(torch.equal(saved[key], start[key]) for key in start if key.startswith("backbone."))


def test_a_soup_of_one_epoch_is_the_network_itself(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    run(data, recipe, tmp_path / "one", soup_epochs=1)
    run(data, recipe, tmp_path / "plain")
    one, plain = state(tmp_path / "one"), state(tmp_path / "plain")
    for key, value in plain.items():
        assert torch.equal(one[key], value) == ("running" not in key and "tracked" not in key), key
