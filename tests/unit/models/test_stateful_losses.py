"""Values and gradients of losses with state per sample, against slow formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from models.losses import Samples, build_loss
from models.losses.chunked import chunked_loss
from tests.unit.models.formulas import softmax
from tests.unit.models.stateful import (
    NAMES,
    WIDTH,
    batch,
    begin_loss,
    car_formula,
    confidence_logits,
    perturb,
    soft_label,
)


@pytest.mark.parametrize("params", [{"lam": 0.5, "beta": 0.0}, {"lam": 10.0, "beta": 0.1}])
def test_car_early_is_the_formula_of_its_code(params: dict[str, float]) -> None:
    """Exact without the clamp of the one-hot label in the published code; with it, up to the mass that it adds."""
    logits, target, index, embedding = batch()
    loss = begin_loss("car", target.numpy(), classes=10, **params)
    perturb(loss)
    value = loss(logits, target, index, embedding)
    one_hot = torch.eye(10, dtype=torch.float64)[target].tolist()
    rows = list(zip(logits.tolist(), one_hot, confidence_logits(loss, embedding), strict=True))
    exact = torch.tensor([slow_car_early(*row, **params) for row in rows], dtype=torch.float64)
    published = torch.tensor([car_formula(*row, **params, clamp=1e-4) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(value, exact, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(value, published, rtol=5e-3, atol=5e-3)


def slow_car_early(row: list[float], t: list[float], h: float, *, lam: float, beta: float) -> float:
    """Loss of CAR before `start_epoch`, without a clamp, because 0 log q is 0."""
    c = 1 / (1 + math.exp(-h))
    q = c * softmax(row)[t.index(1)] + 1 - c
    return -math.log(q) - lam * math.log(c) - beta * (1 - q) * math.log(1e-4)


@pytest.mark.parametrize("classes", [6, 8, 9, 10])
def test_car_late_is_the_formula_of_its_code(classes: int) -> None:
    """Up to nine classes fit into the soft label; of ten classes, two share the rest."""
    logits, target, index, embedding = batch(classes=classes)
    loss = begin_loss("car", target.numpy(), classes=classes, lam=3.0, beta=0.1, start_epoch=1, every=1, m=0.5)
    perturb(loss)
    for epoch in (0, 1, 2, 3):
        loss.start_epoch(epoch)
        value = loss(logits, target, index, embedding)
        loss.end_epoch()
    labels = [soft_label(loss, row) for row in range(len(target))]
    assert all(min(label) > 1e-4 for label in labels), "no published clamp acts here"
    value = loss(logits, target, index, embedding)
    rows = list(zip(logits.tolist(), labels, confidence_logits(loss, embedding), strict=True))
    expected = torch.tensor([car_formula(*row, lam=3.0, beta=0.1) for row in rows], dtype=torch.float64)
    tolerance = 1e-2 if classes == 10 else 2e-3  # a soft label in half precision adds up to 1 within 1e-3
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)
    early = torch.tensor([slow_car_early(r, torch.eye(classes)[y].tolist(), h, lam=3.0, beta=0.1)
                          for (r, _, h), y in zip(rows, target.tolist(), strict=True)], dtype=torch.float64)  # fmt: skip
    assert (value - early).abs().max() > 0.1, "another objective than before"


def test_soft_labels_of_car_follow_the_moving_average() -> None:
    """Two predictions in an epoch are averaged; a sample with low confidence keeps its label."""
    target = np.array([0, 1, 2])
    loss = begin_loss("car", target, classes=4, start_epoch=0, every=1, m=0.75, delta=0.5)
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 4, generator=draw)
    index = torch.tensor([0, 1, 0])
    trust = torch.tensor([[2.0] * WIDTH, [-2.0] * WIDTH, [1.0] * WIDTH])
    torch.nn.init.ones_(loss.get_submodule("unit").weight)  # type: ignore[arg-type]
    expected = torch.eye(4)[0]
    for epoch in range(3):
        loss.start_epoch(epoch)
        loss(logits, torch.from_numpy(target)[index], index, trust)
        loss.end_epoch()
        expected = 0.75 * expected + 0.25 * logits[[0, 2]].softmax(1).mean(0)
    torch.testing.assert_close(torch.tensor(soft_label(loss, 0)), expected, rtol=0, atol=2e-3)
    assert soft_label(loss, 1) == [0, 1, 0, 0]
    assert soft_label(loss, 2) == [0, 0, 1, 0], "never observed"
    np.testing.assert_allclose(loss.known["confidence"][:2], [0.9909, 0.0003], atol=1e-3)


def test_car_corrects_labels_only_every_so_many_epochs() -> None:
    loss = begin_loss("car", [0, 1], classes=3, start_epoch=2, every=3, m=0.5)
    changes = []
    for epoch in range(7):
        before = loss.known["probs"].copy()
        loss.start_epoch(epoch)
        loss(torch.zeros(2, 3), torch.tensor([0, 1]), torch.arange(2), torch.ones(2, WIDTH))
        loss.end_epoch()
        changes.append(not np.array_equal(before, loss.known["probs"]))
    assert changes == [False, False, True, False, False, True, False]


def test_aum_is_cross_entropy_with_one_class_more() -> None:
    logits, target, index, embedding = batch()
    loss = begin_loss("aum", target.numpy(), classes=10, share=0.3, n_min=1)
    perturb(loss)
    extra = torch.from_numpy(loss.known["extra"])
    assert 0 < extra.sum() <= 4
    wide = torch.cat([logits, torch.tensor(confidence_logits(loss, embedding), dtype=torch.float64)[:, None]], 1)
    expected = cross_entropy(wide, torch.where(extra, 10, target), reduction="none")
    torch.testing.assert_close(loss(logits, target, index, embedding), expected, rtol=1e-12, atol=1e-12)
    loss.start_epoch(10)
    torch.testing.assert_close(loss(logits, target, index, embedding), cross_entropy(logits, target, reduction="none"))


def test_the_extra_class_is_drawn_by_id_and_leaves_every_class_its_own() -> None:
    target = [0] * 4 + [1] * 3 + [2] * 30
    loss = begin_loss("aum", target, classes=3, share=0.9)
    assert np.bincount(loss.known.target[loss.known["extra"]], minlength=3).tolist() == [1, 0, 15]
    shuffled = build_loss("aum", num_classes=3, share=0.9)
    order = np.random.default_rng(0).permutation(37)
    shuffled.begin(Samples(loss.known.id[order].astype(object), np.array(target)[order], loss.known.classes))
    assert shuffled.memory is not None
    assert set(shuffled.memory.id[shuffled.memory["extra"]]) == set(loss.known.id[loss.known["extra"]])


def test_aum_averages_the_margins_of_all_classes_and_the_extra_one() -> None:
    logits, target, index, embedding = batch()
    loss = begin_loss("aum", target.numpy(), classes=10, share=0.3, n_min=1)
    perturb(loss)
    wide = torch.cat([logits, torch.tensor(confidence_logits(loss, embedding), dtype=torch.float64)[:, None]], 1)
    label = torch.where(torch.from_numpy(loss.known["extra"]), 10, target)
    rivals = wide.scatter(1, label[:, None], -math.inf).amax(1)
    margin = wide.gather(1, label[:, None])[:, 0] - rivals
    for epoch in range(2):
        loss.start_epoch(epoch)
        loss((epoch + 1) * logits, target, index, embedding)
        loss.end_epoch()
        if epoch == 0:
            np.testing.assert_allclose(loss.known["total"], margin, rtol=1e-5, atol=1e-6)
    assert loss.known["count"].tolist() == [2] * 12


CASES: list[tuple[str, dict[str, Any], int]] = [
    ("truncated_gce", {}, 0),
    ("marvel", {"base": "nce+agce"}, 0),
    ("marvel", {"base": "ce+sr", "logit_bias": 1.0}, 0),
    ("marvel+", {"gain": 2.0}, 3),
    ("aum", {"share": 0.3, "n_min": 1}, 0),
    ("aum", {"share": 0.3, "n_min": 1, "logit_adjustment": 1.0}, 0),
    ("aum", {"base": "gce", "n_min": 1}, 10),
    ("car", {"lam": 2.0, "beta": 0.3}, 0),
    ("car", {"lam": 2.0, "beta": 0.3, "start_epoch": 1, "every": 1, "m": 0.6}, 3),
    ("car", {"lam": 2.0, "start_epoch": 1, "every": 1, "m": 0.6, "logit_bias": 1.0, "logit_adjustment": 1.0}, 3),
    ("car", {"warmup_ce_epochs": 3, "blend_epochs": 3, "start_epoch": 1, "every": 1, "m": 0.6}, 4),
]


@pytest.mark.parametrize(("name", "params", "epoch"), CASES, ids=str)
@pytest.mark.parametrize("classes", [3, 10])
def test_gradients_are_those_of_the_values(name: str, params: dict[str, Any], epoch: int, classes: int) -> None:
    """Gradients with respect to the logits, and to the embedding if the loss has a unit on it."""
    logits, target, index, embedding = batch(6 if classes == 3 else 12, classes)
    loss = begin_loss(name, target.numpy(), classes=classes, **params)
    perturb(loss)
    for past in range(epoch):
        loss.start_epoch(past)
        loss(logits, target, index, embedding)
        loss.end_epoch()
    loss.start_epoch(epoch)
    of_both = loss.needs_embedding and not (name == "aum" and epoch)
    inputs = (logits.requires_grad_(), embedding.requires_grad_(of_both))
    assert torch.autograd.gradcheck(lambda z, e: loss(z, target, index, e), inputs, eps=1e-6, atol=1e-6, rtol=1e-5)
    units = [p for p in loss.parameters() if of_both]
    loss(logits, target, index, embedding).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in units)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("epoch", [0, 3])
def test_far_logits_stay_finite(name: str, dtype: torch.dtype, epoch: int) -> None:
    logits, target, index, embedding = batch(scale=50)
    settings = (
        {"start_epoch": 1, "every": 1} if name == "car" else {"decision_epoch": 2, "n_min": 1} if name == "aum" else {}
    )
    loss = begin_loss(name, target.numpy(), classes=10, **settings, **({"beta": 0.1} if name == "car" else {}))
    perturb(loss)
    leaf = logits.to(dtype).requires_grad_()
    for past in range(epoch + 1):
        loss.start_epoch(past)
        value = loss(leaf, target, index, 9 * embedding.to(dtype))
        loss.end_epoch()
    value.sum().backward()
    assert value.dtype == torch.float32
    assert value.isfinite().all()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options", [{}, {"init_match": "initial"}, {"warmup_ce_epochs": 2}, {"logit_bias": 2.0}], ids=str
)
def test_options_apply_and_batches_are_noted_from_the_first_epoch(name: str, options: dict[str, Any]) -> None:
    """Batches are noted during the warm-up too, but not by a loss in evaluation."""
    logits, target, index, embedding = batch()
    loss = begin_loss(name, target.numpy(), classes=10, **options, **({"n_min": 1} if name == "aum" else {}))
    loss.start_epoch(0)
    assert loss(logits, target, index, embedding).shape == (12,)
    loss.eval()
    loss(logits, target, index, embedding)
    loss.train()
    with torch.no_grad():
        loss(logits, target, index, embedding)
    if name != "truncated_gce":
        assert loss.known.merge().index.tolist() == list(range(12))


def test_a_loss_in_chunks_notes_everything_once() -> None:
    _, target, index, embedding = batch()
    loss = begin_loss("car", target.numpy(), classes=10, start_epoch=0, every=1)
    loss.start_epoch(0)
    weight = torch.randn(10, WIDTH, generator=torch.Generator().manual_seed(2), requires_grad=True)
    rows = embedding.float().requires_grad_()
    chunked_loss(loss, weight, rows, target, index, rows=5).sum().backward()
    assert loss.known.merge().index.tolist() == list(range(12))
    grads = [weight.grad, rows.grad, *(p.grad for p in loss.parameters())]
    weight.grad = rows.grad = None
    loss.zero_grad()
    loss(rows @ weight.T, target, index, rows).sum().backward()
    for chunked, whole in zip(grads, [weight.grad, rows.grad, *(p.grad for p in loss.parameters())], strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-5)
