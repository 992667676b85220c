"""Fine-tuning at a larger size: its trainable parameters, counters and checkpoints."""

from __future__ import annotations

import dataclasses
import json
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models.training.epochs
from models.data.manifest import read_manifest
from models.evaluation.scores import read_scores
from models.export import parity
from models.export.graph import DeployGraph
from models.export.onnx_file import write_onnx
from models.losses import Loss as AnyLoss
from models.networks.inputs import view_size
from models.recipe.config import Export, Finetune, Loss, Member, Recipe, Train, to_dict
from models.training.epochs import size_share, train_epoch
from models.training.finetune import finetune
from models.training.job import Job
from models.training.train import load_network, train


@pytest.fixture(scope="module")
def trained(data: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a training at 32 pixels."""
    out = tmp_path_factory.mktemp("trained")
    train(Job(data=data, recipe=recipe, member=0, out=out))
    return out


def job(data: Path, recipe: Recipe, start: Path, out: Path, **settings: Any) -> Job:
    out.mkdir(exist_ok=True)
    changed = dataclasses.replace(recipe, finetune=Finetune(**{"epochs": 1, **settings}))
    return Job(data=data, recipe=changed, member=0, start=start / "network.pt", out=out)


def state(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / "network.pt", weights_only=True)["state"]
    return found


def changed(before: Path, after: Path) -> set[str]:
    """Names of the tensors that differ."""
    ours, theirs = state(before), state(after)
    assert ours.keys() == theirs.keys()
    return {name for name in ours if not torch.equal(ours[name], theirs[name])}


def test_photos_are_drawn_as_in_the_last_epoch_of_training() -> None:
    settings = Finetune(epochs=4, lr=1e-4)
    plain = settings.settings(Train(epochs=9, sampling_power=0.5, batch_size=7))
    assert (plain.epochs, plain.lr, plain.sampling_power, plain.batch_size) == (4, 1e-4, 0.5, 7)
    assert (plain.balanced_epochs, plain.best_epochs, plain.backbone_lr_scale) == (0, 0, 1.0)
    even = settings.settings(Train(epochs=9, progressive=True, best_epochs=1, best_photos=5))
    assert (even.progressive, even.balanced_epochs, even.best_epochs, even.best_photos) == (False, 4, 4, 5)
    assert settings.settings(Train(epochs=9, balanced_epochs=2)).balanced_epochs == 4
    best = Finetune(epochs=2, best_photos=3, learn="head").settings(Train(start_size=0.5))
    assert (best.best_epochs, best.best_photos, best.backbone_lr_scale, best.start_size) == (2, 3, 0.0, 1.0)


def test_a_tuned_network_is_asked_at_its_new_size(data: Path, recipe: Recipe, trained: Path, tmp_path: Path) -> None:
    tuned = job(data, recipe, trained, tmp_path / "out")
    finetune(tuned)
    left = load_network(tuned.out / "network.pt")
    assert (load_network(trained / "network.pt").member.size, left.member.size) == (32, 48)
    assert changed(trained, tuned.out) >= {"head.embed.weight", "head.classifier.weight", "backbone.conv1.0.weight"}
    scores, manifest = read_scores(tuned.out / "scores.parquet"), read_manifest(data)
    assert sorted(scores.id) == sorted(manifest.id[manifest.split != "train"])
    assert not np.array_equal(scores.probs, read_scores(trained / "scores.parquet").probs)
    assert [json.loads(line)["epoch"] for line in (tuned.out / "metrics.jsonl").read_text().splitlines()] == [1]
    assert not (tuned.out / "checkpoint.pt").exists()


def test_only_norms_or_the_head_learn(data: Path, recipe: Recipe, trained: Path, tmp_path: Path) -> None:
    for learn in ("norms", "head"):
        finetune(job(data, recipe, trained, tmp_path / learn, learn=learn))
    backbone = load_network(trained / "network.pt").network.backbone
    norms = {f"backbone.{name}.{kind}" for name, module in backbone.named_modules()
             if isinstance(module, torch.nn.BatchNorm2d) for kind in module.state_dict()}  # fmt: skip
    moved = changed(trained, tmp_path / "norms")
    assert {name for name in moved if name.startswith("backbone.")} == norms
    assert {name.split(".")[0] for name in changed(trained, tmp_path / "head")} == {"head"}
    assert "head.embed.weight" in moved
    assert load_network(tmp_path / "head" / "network.pt").member.size == 48


def test_a_frozen_backbone_stays_frozen(data: Path, recipe: Recipe, trained: Path, tmp_path: Path) -> None:
    frozen = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, backbone_lr_scale=0.0))
    finetune(job(data, frozen, trained, tmp_path / "out", learn="all"))
    assert {name.split(".")[0] for name in changed(trained, tmp_path / "out")} == {"head"}


def test_the_loss_counts_the_epochs_of_training(
    data: Path, recipe: Recipe, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that warms up with cross-entropy does not warm up again."""
    started: list[int] = []
    start_epoch = AnyLoss.start_epoch
    monkeypatch.setattr(
        AnyLoss, "start_epoch", lambda self, epoch: (started.append(epoch), start_epoch(self, epoch))[1]
    )
    warm = dataclasses.replace(recipe, loss=Loss(name="gce", params={"warmup_ce_epochs": 2}))
    finetune(job(data, warm, trained, tmp_path / "out", epochs=2))
    assert started == [0, 3, 4], "0 when it is built"


def test_what_the_loss_remembers_goes_on(
    data: Path, recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    marvel = dataclasses.replace(recipe, loss=Loss(name="marvel"))
    train(Job(data=data, recipe=marvel, member=0, out=tmp_path))
    with caplog.at_level(logging.INFO, logger="models"):
        finetune(job(data, marvel, tmp_path, tmp_path / "out"))
    photos = int((read_manifest(data).split == "train").sum())
    assert f"samples.parquet: Counts(kept={photos}, reset=0, dropped=0, new=0)" in caplog.text


def test_a_key_names_the_network_and_the_rules(data: Path, recipe: Recipe, trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "network.pt").write_bytes(b"another")
    jobs = [job(data, recipe, trained, tmp_path / "out", **settings) for settings in (
        {}, {"enlarge": 2.0}, {"learn": "norms"}, {"lr": 1e-5}, {"epochs": 2}, {"best_photos": 4})]  # fmt: skip
    jobs += [job(data, recipe, other, tmp_path / "out"), Job(data=data, recipe=recipe, member=0, out=tmp_path)]
    assert len({each.key for each in jobs}) == len(jobs)


def test_a_killed_fine_tuning_goes_on_to_the_same_bits(
    data: Path, recipe: Recipe, trained: Path, tmp_path: Path
) -> None:
    quick = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, checkpoint_minutes=0.0))
    whole, halved = (job(data, quick, trained, tmp_path / name, epochs=40) for name in ("whole", "halved"))
    (tmp_path / "recipe.json").write_text(json.dumps(to_dict(halved.recipe)))
    arguments = ["--data", data, "--recipe", tmp_path / "recipe.json", "--network", halved.start, "--out", halved.out]
    child = subprocess.Popen(
        [sys.executable, "-m", "models.training.finetune", *map(str, arguments)], stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while not (halved.out / "checkpoint.pt").exists():
            assert child.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL
    assert not (halved.out / "network.pt").exists()
    finetune(halved)
    finetune(whole)
    assert changed(whole.out, halved.out) == set()
    one, other = (read_scores(each.out / "scores.parquet").probs for each in (whole, halved))
    assert np.array_equal(one, other)


@pytest.mark.parametrize("learn", ["all", "norms"])
def test_a_transformer_learns_at_more_places_and_is_exported(
    data: Path, recipe: Recipe, tmp_path: Path, learn: str
) -> None:
    member = Member(backbone="deit_tiny_patch16_224", size=32, args={"depth": 2})
    small = dataclasses.replace(recipe, members=(member,), train=Train(epochs=1, batch_size=8))
    train(Job(data=data, recipe=small, member=0, out=tmp_path))
    finetune(job(data, small, tmp_path, tmp_path / "out", learn=learn))
    before, after = (load_network(folder / "network.pt") for folder in (tmp_path, tmp_path / "out"))
    shapes = [each.network.backbone.get_parameter("pos_embed").shape[1] for each in (before, after)]
    assert shapes == [2 * 2 + 1, 3 * 3 + 1]
    moved = not torch.equal(*(each.network.backbone.get_parameter("pos_embed")[:, 0] for each in (before, after)))
    assert moved == (learn == "all"), "the position embedding is not a norm"
    if learn == "all":
        graph = DeployGraph([after], settings=Export(input_size=40, crops=2, enlarge=(1.25,)))
        write_onnx(graph, tmp_path / "model.onnx", input_size=40, metadata={})
        photos = np.random.default_rng(0).integers(0, 256, (5, 40, 40, 3), dtype=np.uint8)
        parity.require_parity(parity.measure_parity(graph, tmp_path / "model.onnx", photos))


def test_views_grow_over_the_epochs(
    data: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Train(epochs=5, start_size=0.5)
    assert [size_share(epoch, settings) for epoch in range(5)] == pytest.approx([0.5, 0.625, 0.75, 0.875, 1])
    assert size_share(0, Train(epochs=1, start_size=0.5)) == 1
    assert [view_size(96, share) for share in (0.5, 0.51, 1)] == [48, 56, 96]
    assert view_size(45, 1.0) == 45
    seen: list[set[int]] = []

    def record(state: Any, *args: Any, **named: Any) -> None:
        sizes: set[int] = set()
        with state.network.register_forward_pre_hook(lambda _, given: sizes.add(given[0].shape[-1])):
            train_epoch(state, *args, **named)
        seen.append(sizes)

    monkeypatch.setattr(models.training.epochs, "train_epoch", record)
    growing = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, start_size=0.5))
    train(Job(data=data, recipe=growing, member=0, out=tmp_path))
    assert seen == [{16}, {24}, {32}]
