"""Optimisers, learning rates, and how both look in the training of a judge."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.networks.network import build_network
from models.recipe.config import Member, Recipe, Train
from models.training.job import Job
from models.training.optimise import learning_rate, make_optimizer


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    settings = Train(epochs=5, warmup_epochs=1)
    rates = [learning_rate(step, steps=10, settings=settings) for step in range(51)]
    assert rates[0] == pytest.approx(1 / 11)
    assert np.argmax(rates) == 10
    assert rates[10] == 1.0
    assert all(np.diff(rates[:11]) > 0)
    assert all(np.diff(rates[10:]) < 0)
    assert rates[50] == pytest.approx(0, abs=1e-12)
    only_warm = Train(epochs=1, warmup_epochs=3)
    assert all(0 < learning_rate(step, steps=10, settings=only_warm) < 1 for step in range(10))


def test_in_steps_it_is_a_tenth_from_each_epoch_on() -> None:
    """The schedule of the report: 2 epochs of warm-up, and falls after 14 and 20 of 40 epochs."""
    settings = Train(epochs=40, warmup_epochs=2, schedule="step")
    rates = np.array([learning_rate(step, steps=7, settings=settings) for step in range(40 * 7)]).reshape(40, 7)
    assert rates[:2].ravel() == pytest.approx(np.arange(1, 15) / 15)
    assert rates[2:14] == pytest.approx(1)
    assert rates[14:20] == pytest.approx(0.1)
    assert rates[20:] == pytest.approx(0.01)


def test_what_judges_photos_sees_rates_fall_at_the_same_shares(recipe: Recipe) -> None:
    stepped = dataclasses.replace(recipe, train=Train(epochs=40, schedule="step", soup_epochs=5))
    judge = Job(data=Path(), recipe=stepped, member=0, out=Path(), fold=0).train
    assert judge.epochs == recipe.clean.epochs == 1
    assert judge.step_epochs == pytest.approx((14 / 40, 20 / 40))
    assert judge.soup_epochs == 1
    assert Train(epochs=40).light(12) == Train(epochs=12), "what has no effect names no other result"


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_groups_have_their_own_rates_and_decay(name: str, kind: type, recipe: Recipe) -> None:
    network = build_network(Member(backbone="test_resnet", size=32), num_classes=3)
    loss = nn.Linear(2, 1)
    settings = Train(optimizer=name, lr=0.5, weight_decay=0.3, backbone_lr_scale=0.1)
    optimizer = make_optimizer(network, loss, settings)
    assert isinstance(optimizer, kind)
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for part, lr in ((network.backbone, 0.05), (network.head, 0.5)):
        for p in part.parameters():
            if p.requires_grad:
                assert of[id(p)]["lr"] == pytest.approx(lr)
                assert of[id(p)]["weight_decay"] == (0.3 if p.ndim > 1 else 0)
    assert all(of[id(p)]["weight_decay"] == 0 for p in loss.parameters())


def test_sgd_steps_with_momentum(recipe: Recipe) -> None:
    network = build_network(Member(backbone="test_resnet", size=32), num_classes=3)
    settings = Train(optimizer="sgd", lr=0.5, weight_decay=0.0)
    optimizer = make_optimizer(network, nn.Identity(), settings)
    weight, gradients = network.head.classifier.weight, torch.randn(4, 3, 512)
    expected, speed = weight.detach().clone(), torch.zeros(3, 512)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        speed = 0.9 * speed + gradient
        expected -= 0.5 * speed
    torch.testing.assert_close(weight.detach(), expected)
