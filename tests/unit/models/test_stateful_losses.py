"""Losses with state per sample: values against slow formulas, decisions on clusters with planted wrong labels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from models.errors import BatchError, CheckpointMismatch, ConfigError
from models.losses import LOSSES, Samples, build_loss
from models.losses.chunked import chunked_loss
from models.losses.memory import Counts
from models.losses.stateful import Stateful
from tests.unit.models.formulas import softmax

NAMES = ["aum", "car", "marvel", "marvel+", "truncated_gce"]
WIDTH = 4
Rows = NDArray[np.int64]


def begun(name: str, target: Rows | list[int], *, classes: int, **params: Any) -> Stateful:
    """A loss that knows its samples, s0000, s0001 and so on."""
    if name in ("aum", "car"):
        params = {"width": WIDTH} | params
    loss = build_loss(name, num_classes=classes, **params)
    assert isinstance(loss, Stateful)
    labels = np.asarray(target, np.int64)
    ids = np.array([f"s{at:04d}" for at in range(len(labels))], object)
    loss.begin(Samples(ids, labels, [f"class {at}" for at in range(classes)]))
    return loss


def batch(n: int = 12, classes: int = 10, scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, target, index and embedding in float64."""
    draw = torch.Generator().manual_seed(3)
    logits = scale * torch.randn(n, classes, generator=draw, dtype=torch.float64)
    embedding = torch.randn(n, WIDTH, generator=draw, dtype=torch.float64)
    return logits, torch.randint(classes, (n,), generator=draw), torch.arange(n), embedding


def perturb(loss: Stateful) -> None:
    for parameter in loss.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(5))


def epochs(loss: Stateful, margins: list[list[float]], *, first: int = 0) -> None:
    """Epochs in which each sample has the given logit margin, in two classes; NaN: it is not seen."""
    target = torch.from_numpy(loss.known.target)
    for epoch, of_epoch in enumerate(margins, first):
        loss.start_epoch(epoch)
        margin = torch.tensor(of_epoch, dtype=torch.float32)
        index = torch.nonzero(margin.isfinite())[:, 0]
        logits = torch.zeros(len(index), loss.num_classes).scatter(1, target[index, None], margin[index, None])
        logits[:, 2:] = -50
        loss(logits, target[index], index, torch.ones(len(index), WIDTH))
        loss.end_epoch()


# values and gradients


def slow_car(row: list[float], t: list[float], h: float, *, lam: float, beta: float, clamp: float = 0.0) -> float:
    """The published three terms, dense, with the published clamp of t."""
    c = 1 / (1 + math.exp(-h))
    t = [max(x, clamp) for x in t]
    q = [c * p + (1 - c) * x for p, x in zip(softmax(row), t, strict=True)]
    fit = -math.fsum(x * math.log(y) for x, y in zip(t, q, strict=True))
    auxiliary = -math.fsum(y * math.log(max(x, 1e-4)) for x, y in zip(t, q, strict=True))
    return fit - lam * math.log(c) + beta * auxiliary


def dense(loss: Stateful, index: int) -> list[float]:
    """The soft label of a sample, what is left of it spread over the other classes."""
    kept = {
        int(k): float(p)
        for k, p in zip(loss.known["classes"][index], loss.known["probs"][index], strict=True)
        if k >= 0
    }
    rest = max(1 - math.fsum(kept.values()), 0) / max(loss.num_classes - len(kept), 1)
    return [kept.get(k, rest) for k in range(loss.num_classes)]


def odds(loss: Stateful, embedding: Tensor) -> list[float]:
    unit = loss.get_submodule("unit")
    assert isinstance(unit.weight, Tensor)
    assert isinstance(unit.bias, Tensor)
    return (embedding @ unit.weight.double() + unit.bias.double()).tolist()


@pytest.mark.parametrize("params", [{"lam": 0.5, "beta": 0.0}, {"lam": 10.0, "beta": 0.1}])
def test_car_early_is_the_formula_of_its_code(params: dict[str, float]) -> None:
    """Exact without the code's clamp of the one-hot label; with it, within the mass that the clamp adds."""
    logits, target, index, embedding = batch()
    loss = begun("car", target.numpy(), classes=10, **params)
    perturb(loss)
    value = loss(logits, target, index, embedding)
    one_hot = torch.eye(10, dtype=torch.float64)[target].tolist()
    rows = list(zip(logits.tolist(), one_hot, odds(loss, embedding), strict=True))
    exact = torch.tensor([slow_car_early(*row, **params) for row in rows], dtype=torch.float64)
    published = torch.tensor([slow_car(*row, **params, clamp=1e-4) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(value, exact, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(value, published, rtol=5e-3, atol=5e-3)


def slow_car_early(row: list[float], t: list[float], h: float, *, lam: float, beta: float) -> float:
    """Without a clamp: 0 log q is 0."""
    c = 1 / (1 + math.exp(-h))
    q = c * softmax(row)[t.index(1)] + 1 - c
    return -math.log(q) - lam * math.log(c) - beta * (1 - q) * math.log(1e-4)


@pytest.mark.parametrize("classes", [6, 8, 9, 10])
def test_car_late_is_the_formula_of_its_code(classes: int) -> None:
    """With up to nine classes nothing is left out of the soft label; with ten, two classes share what is left."""
    logits, target, index, embedding = batch(classes=classes)
    loss = begun("car", target.numpy(), classes=classes, lam=3.0, beta=0.1, start_epoch=1, every=1, m=0.5)
    perturb(loss)
    for epoch in (0, 1, 2, 3):
        loss.start_epoch(epoch)
        value = loss(logits, target, index, embedding)
        loss.end_epoch()
    labels = [dense(loss, at) for at in range(len(target))]
    assert all(min(label) > 1e-4 for label in labels), "no published clamp acts here"
    value = loss(logits, target, index, embedding)
    rows = list(zip(logits.tolist(), labels, odds(loss, embedding), strict=True))
    expected = torch.tensor([slow_car(*row, lam=3.0, beta=0.1) for row in rows], dtype=torch.float64)
    tolerance = 1e-2 if classes == 10 else 2e-3  # a soft label in half precision adds up to 1 within 1e-3
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)
    early = torch.tensor([slow_car_early(r, torch.eye(classes)[y].tolist(), h, lam=3.0, beta=0.1)
                          for (r, _, h), y in zip(rows, target.tolist(), strict=True)], dtype=torch.float64)  # fmt: skip
    assert (value - early).abs().max() > 0.1, "another objective than before"


def test_soft_labels_of_car_follow_the_moving_average() -> None:
    """Twice in an epoch counts as the mean; a sample that is not trusted keeps its label."""
    target = np.array([0, 1, 2])
    loss = begun("car", target, classes=4, start_epoch=0, every=1, m=0.75, delta=0.5)
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
    torch.testing.assert_close(torch.tensor(dense(loss, 0)), expected, rtol=0, atol=2e-3)
    assert dense(loss, 1) == [0, 1, 0, 0]
    assert dense(loss, 2) == [0, 0, 1, 0], "never seen"
    np.testing.assert_allclose(loss.known["confidence"][:2], [0.9909, 0.0003], atol=1e-3)


def test_car_corrects_labels_only_every_so_many_epochs() -> None:
    loss = begun("car", [0, 1], classes=3, start_epoch=2, every=3, m=0.5)
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
    loss = begun("aum", target.numpy(), classes=10, share=0.3, n_min=1)
    perturb(loss)
    extra = torch.from_numpy(loss.known["extra"])
    assert 0 < extra.sum() <= 4
    wide = torch.cat([logits, torch.tensor(odds(loss, embedding), dtype=torch.float64)[:, None]], 1)
    expected = cross_entropy(wide, torch.where(extra, 10, target), reduction="none")
    torch.testing.assert_close(loss(logits, target, index, embedding), expected, rtol=1e-12, atol=1e-12)
    loss.start_epoch(10)
    torch.testing.assert_close(loss(logits, target, index, embedding), cross_entropy(logits, target, reduction="none"))


def test_the_extra_class_is_drawn_by_id_and_leaves_every_class_its_own() -> None:
    target = [0] * 4 + [1] * 3 + [2] * 30
    loss = begun("aum", target, classes=3, share=0.9)
    assert np.bincount(loss.known.target[loss.known["extra"]], minlength=3).tolist() == [1, 0, 15]
    shuffled = build_loss("aum", num_classes=3, share=0.9)
    order = np.random.default_rng(0).permutation(37)
    shuffled.begin(Samples(loss.known.id[order].astype(object), np.array(target)[order], loss.known.classes))
    assert shuffled.memory is not None
    assert set(shuffled.memory.id[shuffled.memory["extra"]]) == set(loss.known.id[loss.known["extra"]])


def test_aum_averages_the_margins_of_all_classes_and_the_extra_one() -> None:
    logits, target, index, embedding = batch()
    loss = begun("aum", target.numpy(), classes=10, share=0.3, n_min=1)
    perturb(loss)
    wide = torch.cat([logits, torch.tensor(odds(loss, embedding), dtype=torch.float64)[:, None]], 1)
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
    """By the logits, and by the embedding where the loss has a unit on it."""
    logits, target, index, embedding = batch(6 if classes == 3 else 12, classes)
    loss = begun(name, target.numpy(), classes=classes, **params)
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
    loss = begun(name, target.numpy(), classes=10, **settings, **({"beta": 0.1} if name == "car" else {}))
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
def test_options_apply_and_what_is_seen_is_noted_from_the_first_epoch(name: str, options: dict[str, Any]) -> None:
    """While cross-entropy warms up, too; not by a loss that is being evaluated."""
    logits, target, index, embedding = batch()
    loss = begun(name, target.numpy(), classes=10, **options, **({"n_min": 1} if name == "aum" else {}))
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
    loss = begun("car", target.numpy(), classes=10, start_epoch=0, every=1)
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


# decisions


def test_truncation_keeps_equality_in_both_precisions() -> None:
    for dtype in (torch.float32, torch.float64):
        loss = begun("truncated_gce", [0, 0, 0, 0], classes=2, n_min=1, max_share=0.9)
        loss.take_answers(torch.tensor([0.5, 0.5 - 1e-6, 0.1, 0.9], dtype=dtype).log(), accuracy=0.3)
        assert loss.known["kept"].tolist() == [True, False, False, True]
        assert loss.figures() == {"kept_share": 0.5}
        value = loss(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64), torch.arange(4))
        full = (1 - 0.5**0.7) / 0.7
        assert value.tolist() == pytest.approx([2 * full, 0, 0, 2 * full]), "the mean is that of the kept"


def test_truncation_asks_at_its_epochs_and_believes_the_best_model_so_far() -> None:
    loss = begun("truncated_gce", [0] * 4, classes=2, start_epoch=2, every=3, n_min=1)
    sure, unsure = torch.zeros(4), torch.tensor([0.0, 0.0, 0.0, -9.0])
    asked = []
    for epoch in range(9):
        if loss.wants_answers(epoch):
            asked.append(epoch)
            loss.take_answers(unsure if epoch == 2 else sure, accuracy={2: 0.5, 5: 0.4, 8: 0.5}[epoch])
            assert not loss.wants_answers(epoch), "an epoch asks once, also where it is resumed"
        loss.start_epoch(epoch)
        assert loss.known["kept"].all() == (epoch not in range(2, 8)), "worse at 5: not believed; at 8 it comes back"
    assert asked == [2, 5, 8]


def test_without_validation_photos_every_model_decides() -> None:
    loss = begun("truncated_gce", [0] * 4, classes=2, n_min=1)
    for answers, kept in (([0, 0, 0, -9.0], 3), ([0, 0, -9.0, -9.0], 2), ([0.0] * 4, 4)):
        loss.take_answers(torch.tensor(answers), accuracy=math.nan)
        assert loss.known["kept"].sum() == kept


def test_rank_based_truncation_prunes_the_same_share_of_every_class() -> None:
    target = np.repeat([0, 1], [10, 20])
    log_p = torch.linspace(-20, -10, 30)  # nobody comes near .5
    loss = begun("truncated_gce", target, classes=2, k_quantile=0.2)
    loss.take_answers(log_p, accuracy=0.5)
    assert np.bincount(target[~loss.known["kept"]]).tolist() == [2, 4]
    published = begun("truncated_gce", target, classes=2)
    published.take_answers(log_p, accuracy=0.5)
    assert np.bincount(target[~published.known["kept"]]).tolist() == [5, 10], "half of each, by max_share"


def marvel(margins: list[list[float]], *, target: list[int] | None = None, **params: Any) -> Stateful:
    settings: dict[str, Any] = {"run": 2, "start_epoch": 1, "relative": "none", "n_min": 1, "max_share": 0.9} | params
    loss = begun("marvel", target or [0] * len(margins[0]), classes=2, **settings)
    epochs(loss, margins)
    loss.start_epoch(len(margins))
    return loss


def test_marvel_abandons_after_a_run_of_small_margins_for_good() -> None:
    nan = math.nan
    loss = marvel([[-1, -1, 1, -1], [-1, 1, 1, nan], [9, -1, 1, nan], [9, 1, 1, -1], [9, 1, 1, 5]])
    assert loss.known["abandoned"].tolist() == [2, -1, -1, 4], "who is not seen keeps the run"
    assert loss.figures() == {"abandoned_share": 0.5, "flagged_share": 0.0}
    value = loss(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64), torch.arange(4))
    assert value.tolist() == pytest.approx([0, 2 * math.log(2), 2 * math.log(2), 0])


def test_marvel_waits_for_its_first_epoch() -> None:
    margins = [[-1.0, 1.0, 1.0]] * 3
    assert marvel(margins, start_epoch=4).known["abandoned"].tolist() == [-1, -1, -1]
    assert marvel(margins, start_epoch=3).known["abandoned"].tolist() == [3, -1, -1]


def test_marvel_readmits_where_it_is_reversible() -> None:
    margins = [[-1.0, 1.0]] * 2 + [[1.0, 1.0]] * 2
    assert marvel(margins, reversible=True).known["abandoned"].tolist() == [-1, -1]
    assert marvel(margins[:3], reversible=True).known["abandoned"].tolist() == [2, -1]
    assert marvel(margins).known["abandoned"].tolist() == [2, -1]


def test_marvel_plus_weights_up_the_arduous_and_keeps_the_mean() -> None:
    loss = begun("marvel+", [0] * 5, classes=2, run=2, relative="none", n_min=1, max_share=0.9, gain=3.0, band=0.5)
    epochs(loss, [[0.4, 2, -0.3, -3, -0.1]] * 1)
    epochs(loss, [[0.4, 2, 0.2, -3, math.nan]], first=6)
    loss.start_epoch(7)
    assert loss.known["abandoned"].tolist() == [-1, -1, -1, 7, -1]
    for index, expected in (([0, 1, 2, 3, 4], [4, 1, 4, 0, 4]), ([1, 3], [1, 0]), ([3], [0])):
        rows = torch.tensor(index)
        value = loss(torch.zeros(len(rows), 2), torch.zeros(len(rows), dtype=torch.int64), rows) / math.log(2)
        assert value.tolist() == pytest.approx([len(rows) * x / max(sum(expected), 1) for x in expected])


def test_margins_are_of_the_raw_logits() -> None:
    logits, target, index, _ = batch()
    rivals = logits.scatter(1, target[:, None], -math.inf)
    expected = {
        "logit": logits.gather(1, target[:, None])[:, 0] - rivals.amax(1),
        "probability": (lambda p: p.gather(1, target[:, None])[:, 0] - p.scatter(1, target[:, None], 0).amax(1))(
            logits.softmax(1)
        ),
    }
    for kind, margin in expected.items():
        for options in ({}, {"logit_bias": 3.0}, {"base": "ce+sr", "logit_adjustment": 1.0}):
            loss = begun("marvel", target.numpy(), classes=10, margin=kind, **options)
            loss.start_epoch(0)
            loss(logits, target, index)
            loss.end_epoch()
            np.testing.assert_allclose(loss.known["margin"], margin, rtol=1e-5, atol=1e-6)


def test_aum_flags_below_the_percentile_of_the_extra_class() -> None:
    loss = begun("aum", [0] * 40 + [1] * 40, classes=2, share=0.1, decision_epoch=1, max_share=0.2, n_min=2)
    extra = np.flatnonzero(loss.known["extra"])
    assert len(extra) == 8
    total = np.linspace(-1, 3, 80)
    total[extra] = np.linspace(-3, 1, len(extra))
    loss.known["total"][:], loss.known["count"][:] = total, 1
    loss.start_epoch(1)
    flagged = loss.known["flagged"]
    threshold = np.percentile(total[extra], 99)
    own = np.setdiff1d(np.arange(80), extra)
    wished = own[total[own] < threshold]
    assert np.bincount(loss.known.target[wished]).tolist()[0] > 8, "more than the guard lets"
    assert flagged[:40].sum() == 8
    assert flagged[own].sum() == flagged.sum(), "samples of the extra class have their labels back"
    assert total[flagged].max() < threshold
    assert loss.weight is not None
    assert (loss.weight[flagged] == 0).all()
    assert loss.weight.mean() == pytest.approx(1)


# clusters


class Task:
    """Gaussian clusters, some labels of which are wrong, and a network of two layers."""

    def __init__(self, sizes: list[int], *, wrong: float, spread: float = 0.7, dims: int = 16, seed: int = 0) -> None:
        draw = np.random.default_rng(seed)
        truth = np.repeat(np.arange(len(sizes)), sizes)
        centres = draw.normal(size=(len(sizes), dims))
        self.x = torch.from_numpy(centres[truth] + spread * draw.normal(size=(len(truth), dims))).float()
        self.target = truth.copy()
        flip = draw.random(len(truth)) < wrong
        self.target[flip] = (truth[flip] + draw.integers(1, len(sizes), flip.sum())) % len(sizes)
        self.wrong, self.sizes = flip, sizes
        torch.manual_seed(seed)
        self.body = torch.nn.Sequential(torch.nn.Linear(dims, 64), torch.nn.ReLU(), torch.nn.Linear(64, WIDTH * 8))
        self.head = torch.nn.Linear(WIDTH * 8, len(sizes), bias=False)

    def train(self, name: str, *, num_epochs: int, lr: float = 3e-3, **params: Any) -> Stateful:
        if name in ("aum", "car"):
            params = {"width": WIDTH * 8} | params
        loss = begun(name, self.target, classes=len(self.sizes), **params)
        learnt = [*self.body.parameters(), *self.head.parameters(), *loss.parameters()]
        optimizer = torch.optim.Adam(learnt, lr=lr)
        target = torch.from_numpy(self.target)
        for epoch in range(num_epochs):
            if loss.wants_answers(epoch):
                with torch.no_grad():
                    log_p = self.head(self.body(self.x)).log_softmax(1)
                loss.take_answers(log_p.gather(1, target[:, None])[:, 0], accuracy=math.nan)
            loss.start_epoch(epoch)
            for rows in self.batches():
                embedding = self.body(self.x[rows])
                optimizer.zero_grad()
                loss(self.head(embedding), target[rows], rows, embedding).mean().backward()
                optimizer.step()
            loss.end_epoch()
        loss.start_epoch(num_epochs)
        return loss

    def batches(self) -> Iterator[Tensor]:
        yield from torch.randperm(len(self.x)).split(64)


PLANTED: dict[str, dict[str, Any]] = {
    "truncated_gce": {"start_epoch": 8, "every": 4},
    "marvel": {"run": 4, "start_epoch": 6},
    "marvel+": {"run": 4, "start_epoch": 6},
    "aum": {"decision_epoch": 10},
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_wrong_labels_are_left_out(name: str) -> None:
    task = Task([120] * 8, wrong=0.2)
    loss = task.train(name, num_epochs=16, **PLANTED[name])
    assert loss.weight is not None
    out = loss.weight == 0
    precision, recall = task.wrong[out].mean(), out[task.wrong].mean()
    assert recall > 0.75, (precision, recall)
    assert precision > 0.75, (precision, recall)


def test_car_corrects_wrong_labels() -> None:
    task = Task([120] * 8, wrong=0.2)
    loss = task.train("car", num_epochs=24, lam=1.0, start_epoch=8, every=1, m=0.8)
    labels = loss.known["classes"][:, 0]
    assert loss.figures()["corrected_share"] == pytest.approx((labels != task.target).mean())
    truth = np.repeat(np.arange(8), 120)
    assert (labels == truth)[task.wrong].mean() > 0.6
    assert (labels == truth)[~task.wrong].mean() > 0.95


def test_car_trusts_a_region_of_wrong_labels_less() -> None:
    """The unit sees the photo alone: it tells where labels are noise, here in the last class."""
    task = Task([120] * 8, wrong=0.0)
    noise = np.arange(840, 960)
    task.target[noise] = np.random.default_rng(1).integers(0, 8, len(noise))
    confidence = task.train("car", num_epochs=12, lam=0.5).known["confidence"].astype(float)
    assert confidence[:840].mean() > confidence[noise].mean() + 0.2


def abandoned(task: Task, **params: Any) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Who is left out, and whose label is one of the tail."""
    loss = task.train("marvel", run=4, start_epoch=4, n_min=1, **params)
    assert loss.weight is not None
    return loss.weight == 0, np.array(task.sizes)[task.target] <= 50


def test_the_tail_is_not_abandoned_for_being_rare() -> None:
    """Two heads and ten tails without a wrong label: one threshold for all leaves tails out, one of the class does not."""
    shares = {}
    for relative in ("none", "prior", "quantile"):
        out, tail = abandoned(
            Task([400, 400] + [6] * 10, wrong=0.0, spread=0.9, seed=1), num_epochs=10, lr=1e-3, relative=relative
        )
        shares[relative] = float(out[tail].mean())
    assert shares["none"] > 0.4, shares
    assert shares["prior"] < shares["none"], shares
    assert shares["quantile"] < 0.03, shares


def test_wrong_labels_are_found_in_a_long_tail() -> None:
    task = Task([400, 200, 100, 50, 25, 12, 6, 6], wrong=0.2, seed=1)
    out, tail = abandoned(task, num_epochs=16)
    assert out[task.wrong & ~tail].mean() > 0.9
    assert out[task.wrong & tail].mean() > 0.3
    assert out[~task.wrong].mean() < 0.03


# files, states and refusals


def test_a_soft_label_follows_its_classes_into_another_data_version(tmp_path: Path) -> None:
    logits, target, index, embedding = batch(classes=4)
    loss = begun("car", target.numpy(), classes=4, start_epoch=0, every=1, m=0.5)
    loss.start_epoch(0)
    loss(logits, target, index, embedding)
    loss.end_epoch()
    loss.known.write(tmp_path / "samples.parquet", params={"m": 0.5})
    new = build_loss("car", num_classes=4, width=WIDTH, start_epoch=0)
    assert isinstance(new, Stateful)
    classes = ["new", "class 3", "class 0", "class 1"]  # class 2 is gone
    kept = np.flatnonzero(target.numpy() != 2)
    names = [f"class {y}" for y in target.numpy()[kept]]
    new.begin(Samples(loss.known.id[kept].astype(object), np.array([classes.index(name) for name in names]), classes))
    assert new.known.carry(tmp_path / "samples.parquet") == Counts(len(kept), 0, 12 - len(kept), 0)
    for at, before in enumerate(kept):
        old, now = dense(loss, int(before)), dense(new, at)
        np.testing.assert_allclose([now[classes.index(f"class {k}")] for k in (0, 1, 3)], [old[k] for k in (0, 1, 3)])
        assert now[0] == pytest.approx(old[2], abs=1e-3), "what belonged to a class that is gone is left to the rest"
    n = len(kept)
    value = new(logits[:n], torch.from_numpy(new.known.target), torch.arange(n), embedding[:n])
    expected = [slow_car(logits[at].tolist(), dense(new, at), 0.0, lam=10.0, beta=0.0) for at in range(n)]
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64), rtol=2e-3, atol=2e-3)


def test_what_was_abandoned_stays_so_within_the_guards_of_the_new_version(tmp_path: Path) -> None:
    loss = marvel([[-1.0] * 6 + [1.0] * 4] * 3)
    assert (loss.known["abandoned"] != -1).sum() == 6
    loss.known.write(tmp_path / "samples.parquet")
    fewer = begun("marvel", [0] * 8, classes=2, relative="none", max_share=0.5, n_min=1)
    assert fewer.known.carry(tmp_path / "samples.parquet") == Counts(kept=8, reset=0, dropped=2, new=0)
    fewer.start_epoch(0)
    assert (fewer.known["abandoned"] != -1).tolist() == [True] * 4 + [False] * 4
    assert fewer.weight is not None
    assert fewer.weight.tolist() == [0, 0, 0, 0, 2, 2, 2, 2]


def test_state_of_other_settings_is_refused(tmp_path: Path) -> None:
    marvel([[1.0, -1.0]]).known.write(tmp_path / "samples.parquet")
    other = begun("marvel", [0, 0], classes=2, margin="probability", relative="none")
    with pytest.raises(
        CheckpointMismatch, match=r"params\.margin is 'logit', and this training has 'probability'; leave"
    ):
        other.known.carry(tmp_path / "samples.parquet")
    wrong = begun("aum", [0, 0, 0, 0], classes=2)
    with pytest.raises(CheckpointMismatch, match=r"loss is 'marvel', and this training has 'aum'"):
        wrong.known.carry(tmp_path / "samples.parquet")


def test_marvel_plus_goes_on_where_marvel_was(tmp_path: Path) -> None:
    marvel([[-1.0, 1.0, 1.0]] * 2).known.write(tmp_path / "samples.parquet")
    plus = begun("marvel+", [0, 0, 0], classes=2, relative="none")
    assert plus.known.carry(tmp_path / "samples.parquet").kept == 3
    assert plus.known["run"].tolist() == [2, -2, -2]


@pytest.mark.parametrize("name", NAMES)
def test_before_begin_a_loss_says_what_is_missing(name: str) -> None:
    logits, target, index, embedding = batch()
    params = {"width": WIDTH} if name in ("aum", "car") else {}
    loss = build_loss(name, num_classes=10, **params)
    assert loss.memory is None
    assert loss.figures() == {}  # type: ignore[attr-defined, operator]
    assert loss.needs_index
    loss.load_state_dict(loss.state_dict())  # of a loss that has not begun
    with pytest.raises(BatchError, match=r"does not know them yet; call begin\(samples\) first"):
        loss(logits, target, index, embedding)
    with pytest.raises(BatchError, match="index: this loss keeps state per sample"):
        loss(logits, target)
    with pytest.raises(BatchError, match=r"samples: of 2 classes, and the loss was built for 10"):
        loss.begin(Samples(np.array(["a"], object), np.array([0]), ["x", "y"]))


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("marvel", {"base": "car"}, r"loss\.params\.base: 'car' keeps state itself; choose a loss without"),
        ("marvel", {"base": "cee"}, r"no loss 'cee' \(did you mean 'ce'\?\)"),
        ("marvel", {"base_params": {"q": 0.5}}, r"loss\.params\.q: 'ce' has no such parameter"),
        (
            "marvel",
            {"base_params": {"logit_bias": 0.5}},
            r"base_params: logit_bias is an option of the whole loss; move it",
        ),
        ("marvel", {"gain": 1.0}, r"'marvel' has no such parameter"),
        ("marvel+", {"gain": 0.0}, r"loss\.params\.gain: 0\.0 is outside \(0, inf\]"),
        ("marvel", {"max_share": 1.0}, r"max_share: 1\.0 is outside \[0, 1\)"),
        ("truncated_gce", {"k": 0.0}, r"loss\.params\.k: 0\.0 is outside \(0, 1\)"),
        ("truncated_gce", {"every": 0}, r"loss\.params\.every: 0 is outside"),
        ("car", {"m": 1.0}, r"loss\.params\.m: 1\.0 is outside \[0, 1\)"),
        ("car", {"init_match": "batch"}, r"init_match: this loss can only be matched"),
        ("aum", {"percentile": 101.0}, r"percentile: 101\.0 is outside \[0, 100\]"),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_loss(name, num_classes=10, **params)


def test_what_does_not_fit_the_samples_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"n_min: no class has more than 3 photos.*lower it"):
        begun("aum", [0, 0, 1], classes=2)
    truncated = begun("truncated_gce", [0, 1], classes=2)
    with pytest.raises(BatchError, match=r"log_p: of shape \(3,\), and this loss began with 2 samples"):
        truncated.take_answers(torch.zeros(3), accuracy=0.5)
    car = begun("car", [0, 1], classes=2)
    with pytest.raises(BatchError, match=r"embedding of shape \(1, 3\): want \(N, 4\); set loss\.params\.width"):
        car(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([0]), torch.zeros(1, 3))
    with pytest.raises(BatchError, match=r"index: 7 to 7; this loss began with 2 samples"):
        car(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([7]), torch.zeros(1, 4))


def test_every_stateful_loss_is_tested_here() -> None:
    stateful = [name for name in LOSSES.components if build_loss(name, num_classes=5).needs_index]
    assert sorted(stateful) == NAMES
