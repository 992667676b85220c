"""Mixup and CutMix against slow formulas, for any loss, and by several workers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models import distributed
from models.data.mixing import Label, Mix, draw_mix, labels_of
from models.errors import ConfigError
from models.losses import LOSSES, Samples, build_loss
from models.networks.inputs import Features
from models.networks.network import Head
from models.recipe.config import Augment, Loss, Member, Recipe, Train
from models.training.check import check
from models.training.job import Job
from models.training.sample_weights import SampleWeights
from models.training.step import Learner
from models.training.train import train

CPU = torch.device("cpu")
STATELESS = sorted(name for name in LOSSES.components if not build_loss(name, num_classes=5).needs_index)


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features(augment: Augment) -> Features:
    views = torch.randn(2, 20, 6, generator=generator(0))
    return Features(views, Head(6, num_classes=5), augment=augment)


def test_each_is_mixed_with_the_next_and_the_last_with_the_first() -> None:
    order = [np.array([4, 7, 7, 1, 12])]
    ((plain, whole, _),) = features(Augment()).training(order, generator())
    ((mixed, share, _),) = features(Augment(mixup=0.4)).training(order, generator())
    assert (whole, len(plain), len(mixed)) == (1, 5, 5)
    assert 0 < share < 1
    expected = torch.stack([share * plain[i] + (1 - share) * plain[(i + 1) % 5] for i in range(5)])
    torch.testing.assert_close(mixed, expected)


def test_a_box_comes_from_the_next_and_the_share_is_what_is_left() -> None:
    colours = torch.arange(7.0)[:, None, None, None].expand(7, 3, 20, 20)  # the seventh is a partner only
    shares = []
    for seed in range(200):
        mix = draw_mix(Augment(cutmix=1.0), size=20, generator=generator(seed))
        mixed = mix.apply(colours)
        assert mixed.shape == (6, 3, 20, 20)
        own = mixed == colours[:6]
        assert bool((own | (mixed == colours[1:])).all())
        assert own.double().mean((1, 2, 3)).tolist() == pytest.approx([mix.share] * 6)
        hole = ~own[0, 0]
        rows, columns = hole.any(1), hole.any(0)
        assert bool((hole == (rows[:, None] & columns)).all()), "a box"
        shares.append(mix.share)
    assert 0.5 < np.mean(shares) < 0.75, "boxes at the border are cut, so that a half is the least"


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_shares_are_beta_distributed(alpha: float) -> None:
    found = np.array([draw_mix(Augment(mixup=alpha), size=1, generator=generator(seed)).share for seed in range(2000)])
    assert found.mean() == pytest.approx(0.5, abs=0.03)
    assert found.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_of_both_half_of_the_batches_get_each() -> None:
    both = Augment(mixup=0.3, cutmix=0.3)
    cut = [draw_mix(both, size=8, generator=generator(seed)).box is not None for seed in range(400)]
    assert 160 < sum(cut) < 240


def losses(loss: Any, inputs: Features, batch: Tensor, labels: Any, *, rows: int, weight: Tensor) -> Tensor:
    learner = Learner(SimpleNamespace(head=inputs.part), loss, part=inputs.part, sample_weights=SampleWeights(weight),  # type: ignore[arg-type]
                      settings=Train(head_rows=rows))  # fmt: skip
    values: Tensor = learner(batch, labels).values
    return values


def given(name: str) -> tuple[Any, Features, Tensor, Tensor]:
    """Training state, inputs, a batch (6, 6), and the classes of 20 photos."""
    own = {"width": 512} if "width" in LOSSES.find(name).parameters else {}
    loss = build_loss(name, num_classes=5, **own)
    inputs = features(Augment())
    target = torch.randint(5, (20,), generator=generator(1))
    loss.begin(Samples(np.array([str(i) for i in range(20)], object), target.numpy(), list("abcde")))
    torch.nn.init.normal_(inputs.part.classifier.weight, std=0.3, generator=generator(2))
    inputs.part.eval()
    return loss, inputs, torch.randn(6, 6, generator=generator(4)), target


@pytest.mark.parametrize("rows", [0, 4])
@pytest.mark.parametrize("name", STATELESS)
def test_the_loss_of_a_mixed_photo_is_the_mean_of_both_labels(name: str, rows: int) -> None:
    loss, inputs, batch, target = given(name)
    weight = torch.linspace(0.5, 1.5, 20)
    order = np.array([3, 9, 0, 14, 9, 2])
    labels = labels_of(order, target, share=0.3, device=CPU)
    found = losses(loss, inputs, batch, labels, rows=rows, weight=weight)
    logits, embedding = inputs.part(batch)
    expected = torch.zeros(6)
    for share, rolled in ((0.3, order), (0.7, np.roll(order, -1))):
        for i, sample in enumerate(rolled):
            of_one = loss(logits[i : i + 1], target[[sample]], torch.tensor([sample]), embedding[i : i + 1])
            expected[i] += share * weight[sample] * of_one[0]
    torch.testing.assert_close(found, expected)


def test_with_cross_entropy_it_is_that_of_the_mixed_target() -> None:
    loss, inputs, batch, target = given("ce")
    order = np.arange(6)
    labels = labels_of(order, target, share=0.3, device=CPU)
    found = losses(loss, inputs, batch, labels, rows=0, weight=torch.ones(20))
    one_hot = functional.one_hot(target[:6], 5).float()
    soft = 0.3 * one_hot + 0.7 * one_hot.roll(-1, 0)
    torch.testing.assert_close(found, functional.cross_entropy(inputs.part(batch).logits, soft, reduction="none"))


def test_where_nothing_is_mixed_there_is_one_label() -> None:
    (label,) = labels_of(np.array([2, 0]), torch.tensor([5, 6, 7]), share=1.0, device=CPU)
    assert isinstance(label, Label)
    assert (label.share, label.target.tolist(), label.index.tolist()) == (1, [7, 5], [2, 0])


@pytest.mark.parametrize("augment", [Augment(), Augment(mixup=0.4)], ids=["plain", "mixed"])
def test_parts_of_workers_are_the_batch_of_one_alone(monkeypatch: pytest.MonkeyPatch, augment: Augment) -> None:
    order, target = np.array([4, 7, 7, 1, 12, 3, 9]), torch.arange(20)
    ((whole, share, _),) = features(augment).training([order], generator())
    labels = labels_of(order, target, share=share, device=CPU)
    monkeypatch.setattr(distributed, "world", lambda: 3)
    parts, shown = [], []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        ((part, same, _),) = features(augment).training([order], generator())
        assert same == share
        parts.append(part)
        shown.append(labels_of(order, target, share=share, device=CPU))
    assert [len(part) for part in parts] == [3, 2, 2]
    torch.testing.assert_close(torch.cat(parts), whole)
    for i, label in enumerate(labels):
        assert torch.equal(torch.cat([of[i].index for of in shown]), label.index)
        assert torch.equal(torch.cat([of[i].target for of in shown]), label.target)


def test_features_are_mirrored_only_where_photos_may_be() -> None:
    order = [np.arange(20)]
    ((either, *_),) = features(Augment()).training(order, generator())
    inputs = features(Augment(flip=False))
    ((plain, *_),) = inputs.training(order, generator())
    assert torch.equal(plain, inputs.views[0])
    assert 0 < sum(bool((a != b).any()) for a, b in zip(either, plain, strict=True)) < 20


def test_photos_are_whole_again_at_either_end() -> None:
    photos = torch.rand(4, 3, 5, 5)
    assert torch.equal(Mix(1.0).apply(photos), photos[:3])
    assert torch.equal(Mix(0.0).apply(photos), photos[1:])


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_loss_with_state_per_photo_is_refused(kind: str, data: Path, recipe: Recipe, tmp_path: Path) -> None:
    mixing = dataclasses.replace(recipe, loss=Loss(name="marvel"), augment=Augment(**{kind: 0.2}))
    message = rf"augment\.{kind}: Marvel keeps state per photo.* set it to 0, or choose a loss without state per photo"
    with pytest.raises(ConfigError, match=message):
        check(mixing, data=data)
    with pytest.raises(ConfigError, match=message):
        train(Job(data=data, recipe=mixing, member=0, out=tmp_path))


def test_a_training_on_mixed_photos_ends_elsewhere(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    losses = []
    for name, augment in (("plain", Augment()), ("mixed", Augment(mixup=1.0, cutmix=1.0))):
        (tmp_path / name).mkdir()
        settings = dataclasses.replace(
            recipe,
            augment=augment,
            train=Train(epochs=1, batch_size=8),
            members=(Member(backbone="test_resnet", size=32),),
        )
        train(Job(data=data, recipe=settings, member=0, out=tmp_path / name))
        losses.append((tmp_path / name / "metrics.jsonl").read_text().split('"lr"')[0])
    assert losses[0] != losses[1]
