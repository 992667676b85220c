"""Options of every loss, weights of the gradient, and messages about mistakes before training starts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.errors import BatchError, ConfigError
from models.losses import LOSSES, Samples, build_loss, log_odds
from models.losses.base import LARGEST_SCALE, initial_weight, nonfinite_error
from tests.unit.models.formulas import STATELESS, batch, gradient

NAMES = sorted(LOSSES.components)
CLASSES = (10, 100, 1000, 10000, 50030)
# Gradient divided by that of cross-entropy: at p_y = 1/C for these numbers of classes, and at .1, .5, .9.
WEIGHTS: list[tuple[str, dict[str, Any], tuple[float, ...], tuple[float, ...]]] = [
    ("ce", {}, (1, 1, 1, 1, 1), (1, 1, 1)),
    ("gce", {"q": 0.7}, (0.20, 0.040, 7.9e-3, 1.6e-3, 5.1e-4), (0.20, 0.62, 0.93)),
    ("gce", {"q": 0.3}, (0.50, 0.25, 0.13, 0.063, 0.039), (0.50, 0.81, 0.97)),
    ("mae", {}, (0.10, 0.010, 1e-3, 1e-4, 2.0e-5), (0.10, 0.50, 0.90)),
    ("rce", {}, (0.92, 0.092, 9.2e-3, 9.2e-4, 1.8e-4), (0.92, 4.6, 8.3)),
    ("agce", {"a": 0.6, "q": 0.6}, (0.12, 0.012, 1.2e-3, 1.2e-4, 2.5e-5), (0.12, 0.48, 0.77)),
    ("agce", {"a": 1e-5, "q": 0.5}, (0.32, 0.10, 0.032, 9.5e-3, 3.7e-3), (0.32, 0.71, 0.95)),
    ("aul", {"a": 5.5, "q": 3.0}, (2.9, 0.30, 0.030, 3.0e-3, 6.1e-4), (2.9, 12.5, 19)),
    ("aul", {"a": 6.3, "q": 1.5}, (0.25, 0.025, 2.5e-3, 2.5e-4, 5.0e-5), (0.25, 1.2, 2.1)),
    ("ael", {"a": 2.5}, (0.038, 4.0e-3, 4.0e-4, 4.0e-5, 8.0e-6), (0.04, 0.16, 0.25)),
    ("polysoft", {"lam": 4.0, "d": 2.0}, (0.42, 0, 0, 0, 0), (0.42, 0.83, 0.97)),
    ("nce", {}, (0.043, 2.2e-3, 1.5e-4, 1.1e-5, 1.9e-6), ()),
]


def printed(values: tuple[float, ...]) -> Any:
    """Equal to the two digits that the table prints."""
    return pytest.approx(list(values), rel=0.06, abs=1e-12)


@pytest.mark.parametrize(("name", "params", "initial", "later"), WEIGHTS)
def test_weights_of_the_gradient(
    name: str, params: dict[str, Any], initial: tuple[float, ...], later: tuple[float, ...]
) -> None:
    assert [initial_weight(build_loss(name, num_classes=c, **params)) for c in CLASSES] == printed(initial)
    for p, weight in zip((0.1, 0.5, 0.9), later, strict=False):
        logits, target = torch.tensor([[log_odds(p, 2), 0.0]], dtype=torch.float64), torch.tensor([0])
        found = gradient(name, logits, target, **params) / gradient("ce", logits, target)
        assert found[0].tolist() == printed((weight, weight))


@pytest.mark.parametrize("name", [name for name in STATELESS if not name.endswith("+sr")])
@pytest.mark.parametrize("options", [{}, {"logit_bias": 4.0}], ids=str)
def test_the_initial_weight_is_the_one_at_equal_logits(name: str, options: dict[str, Any]) -> None:
    logits, target = torch.zeros(1, 9, dtype=torch.float64), torch.tensor([8])
    found = gradient(name, logits, target, **options)[0, 8] / gradient("ce", logits, target)[0, 8]
    assert initial_weight(build_loss(name, num_classes=9, **options)) == pytest.approx(float(found))


def test_the_bias_that_starts_a_label_at_one_in_ten() -> None:
    assert [round(log_odds(0.1, c), 1) for c in CLASSES] == [0, 2.4, 4.7, 7.0, 8.6]
    logits, target = torch.zeros(1, 1000), torch.tensor([3])
    biased = build_loss("mae", num_classes=1000, logit_bias=log_odds(0.1, 1000))
    assert float(biased(logits, target)) == pytest.approx(0.9, rel=1e-5)


@pytest.mark.parametrize("name", STATELESS)
def test_logit_bias_adds_to_the_labels_logit_inside_the_loss(name: str) -> None:
    logits, target = batch()
    params: dict[str, Any] = {"l2_normalise": False, "tau": 1.0} if name.endswith("+sr") else {}
    value = build_loss(name, num_classes=7, logit_bias=2.5, **params)(logits, target)
    moved = logits.clone()
    moved[torch.arange(len(target)), target] += 2.5
    torch.testing.assert_close(value, build_loss(name, num_classes=7, **params)(moved, target))


def samples(counts: list[int]) -> Samples:
    target = np.repeat(np.arange(len(counts)), counts)
    return Samples(
        id=np.array([f"{i:04d}" for i in target], dtype=object), target=target, classes=list("abcdefg"[: len(counts)])
    )


@pytest.mark.parametrize("name", STATELESS)
def test_logit_adjustment_adds_the_log_prior(name: str) -> None:
    logits, target = batch()
    params: dict[str, Any] = {"l2_normalise": False, "tau": 1.0} if name.endswith("+sr") else {}
    loss = build_loss(name, num_classes=7, logit_adjustment=1.5, **params)
    torch.testing.assert_close(
        loss(logits, target), build_loss(name, num_classes=7, **params)(logits, target), rtol=0, atol=0
    )  # the labels are not known yet
    loss.begin(samples([50, 20, 10, 5, 3, 1, 0]))  # a class without photos counts as one
    prior = torch.tensor([50, 20, 10, 5, 3, 1, 1], dtype=torch.float64) / 90
    moved = logits + 1.5 * prior.log()
    expected = build_loss(name, num_classes=7, **params)(moved, target)
    torch.testing.assert_close(loss(logits, target), expected, rtol=1e-5, atol=1e-6)
    leaf = logits.clone().requires_grad_()
    loss(leaf, target).sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, gradient(name, moved, target, **params), rtol=1e-5, atol=1e-6)


def test_balanced_softmax_is_cross_entropy_adjusted_by_one() -> None:
    logits, target = batch(classes=3)
    loss = build_loss("ce", num_classes=3, logit_adjustment=1.0)
    loss.begin(samples([6, 3, 1]))
    scaled = logits.exp() * torch.tensor([6.0, 3.0, 1.0])
    expected = -(scaled.gather(1, target[:, None])[:, 0] / scaled.sum(1)).log()
    torch.testing.assert_close(loss(logits, target), expected, rtol=1e-6, atol=1e-7)
    assert "prior" not in loss.state_dict()  # computed from the labels again, so that no checkpoint can contradict them


@pytest.mark.parametrize("name", STATELESS)
def test_warm_up_is_cross_entropy_and_the_blend_is_linear(name: str) -> None:
    logits, target = batch()
    params: dict[str, Any] = {"l2_normalise": False, "tau": 1.0, "rho": 1.0} if name.endswith("+sr") else {}
    loss = build_loss(name, num_classes=7, warmup_ce_epochs=2, blend_epochs=3, **params)
    own = build_loss(name, num_classes=7, **params)(logits, target)
    plain = build_loss("ce", num_classes=7)(logits, target)
    torch.testing.assert_close(loss(logits, target), plain, rtol=1e-9, atol=1e-12)  # before any epoch: as in the first
    for epoch, share in enumerate([1, 1, 0.75, 0.5, 0.25, 0, 0]):
        loss.start_epoch(epoch)
        torch.testing.assert_close(loss(logits, target), share * plain + (1 - share) * own, rtol=1e-9, atol=1e-12)
    loss.start_epoch(0)  # a resume may go back
    torch.testing.assert_close(loss(logits, target), plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", STATELESS)
@pytest.mark.parametrize("classes", [10, 5003])
def test_init_match_starts_with_the_gradient_of_cross_entropy(name: str, classes: int) -> None:
    params: dict[str, Any] = {"l2_normalise": False, "tau": 1.0} if name.endswith("+sr") else {}
    logits, target = torch.zeros(1, classes, dtype=torch.float64), torch.tensor([classes - 1])
    wanted = gradient("ce", logits, target)
    found = gradient(name, logits, target, init_match="initial", **params)
    loss = build_loss(name, num_classes=classes, init_match="initial", **params)
    if loss.scale < LARGEST_SCALE:
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)
    else:
        assert float(found[0, -1] / wanted[0, -1]) < 1
    plain = build_loss(name, num_classes=classes, **params)
    torch.testing.assert_close(loss(logits, target), loss.scale * plain(logits, target))


@pytest.mark.parametrize("base", ["ce", "focal", "gce"])
def test_sharpened_losses_are_matched_by_their_sharpened_logits(base: str) -> None:
    """Equal logits have no norm; the penalty has no slope there."""
    scales = [build_loss(name, num_classes=50, init_match="initial").scale for name in (base, f"{base}+sr")]
    assert scales[0] == pytest.approx(scales[1])


@pytest.mark.parametrize("name", ["mae", "rce", "gce", "agce", "aul", "ael", "focal", "sce"])
def test_matching_each_batch_brings_the_mean_weight_to_one(name: str) -> None:
    logits, target = batch()
    matched = gradient(name, logits, target, init_match="batch")
    plain = gradient(name, logits, target)
    factor = float((matched / plain).mean())
    torch.testing.assert_close(matched, factor * plain)  # one factor, detached: the ranking of the samples stays
    rows = torch.arange(len(target))
    weights = (matched / gradient("ce", logits, target))[rows, target]
    assert float(weights.mean()) == pytest.approx(1)


def test_a_batch_without_any_weight_is_not_divided_by_zero() -> None:
    logits = torch.tensor([[-500.0, 500.0]])
    found = gradient("mae", logits, torch.tensor([0]), init_match="batch")
    assert found.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"logit_bais": 1.0}, r"loss\.params\.logit_bais: .* \(did you mean 'logit_bias'\?\); it takes .*logit_bias"),
        ({"logit_bias": 51.0}, r"loss\.params\.logit_bias: 51\.0 is outside \[-50, 50\]; .*--set loss\.params\."),
        ({"logit_bias": math.nan}, r"loss\.params\.logit_bias: nan is not finite"),
        ({"logit_bias": "much"}, r"loss\.params\.logit_bias: 'much' is not a number"),
        ({"init_match": "first"}, r"loss\.params\.init_match: 'first' is not one of '', 'initial', 'batch'"),
        ({"warmup_ce_epochs": -1}, r"loss\.params\.warmup_ce_epochs: -1 is outside \[0, inf\]"),
        ({"warmup_ce_epochs": 1.5}, r"loss\.params\.warmup_ce_epochs: 1\.5 is not an integer"),
        ({"blend_epochs": True}, r"loss\.params\.blend_epochs: True is not an integer"),
        ({"logit_adjustment": 5}, r"loss\.params\.logit_adjustment: 5\.0 is outside \[0, 4\]"),
    ],
)
def test_unknown_or_wrong_options_of_every_loss_are_refused(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_loss(name, num_classes=5, **params)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("gcee", {}, r"loss\.name: no loss 'gcee' \(did you mean 'gce'\?\); known: .*agce, .*ce, .*gce.*nce\+rce"),
        ("ce", {"label_smothing": 0.1}, r"loss\.params\.label_smothing: .* \(did you mean 'label_smoothing'\?\)"),
        ("ce", {"label_smoothing": 1}, r"loss\.params\.label_smoothing: 1\.0 is outside \[0, 1\)"),
        ("gce", {"name": "x"}, r"loss\.params\.name: 'gce' has no such parameter"),
        ("gce", {"q": 0.0}, r"loss\.params\.q: 0\.0 is outside \(0, 1\]; .*--set loss\.params\.q="),
        ("gce", {"q": 1.1}, r"loss\.params\.q: 1\.1 is outside \(0, 1\]"),
        ("ngce", {"q": 0}, r"loss\.params\.q: 0\.0 is outside \(0, 1\]"),
        ("agce", {"a": "much"}, r"loss\.params\.a: 'much' is not a number"),
        ("agce", {"a": 0}, r"loss\.params\.a: 0\.0 is outside \(0, inf\]"),
        ("agce", {"q": True}, r"loss\.params\.q: True is not a number"),
        ("aul", {"a": 1.0}, r"loss\.params\.a: 1\.0 is outside \(1, inf\]"),
        ("nce+aul", {"a": 0.5}, r"loss\.params\.a: 0\.5 is outside \(1, inf\]"),
        ("nce+aul", {"gamma": 0.5}, r"loss\.params\.gamma: 'nce\+aul' has no such parameter.* takes a, q, alpha, beta"),
        ("nce+mae", {"alpha": -1}, r"loss\.params\.alpha: -1\.0 is outside \[0, inf\]"),
        ("polysoft", {"d": 1}, r"loss\.params\.d: 1\.0 is outside \(1, inf\]"),
        ("polysoft", {"lam": 0}, r"loss\.params\.lam: 0\.0 is outside \(0, inf\]"),
        ("polysoft", {"lam": "x"}, r"loss\.params\.lam: 'x' is not a number"),
        ("focal", {"detach_factor": 1}, r"loss\.params\.detach_factor: 1 is not true or false"),
        ("nnce", {"min_prob": 0.2}, r"loss\.params\.min_prob: 0\.2 is not below 1 / 5"),
        ("ce+sr", {"q": 0.5}, r"loss\.params\.q: 'ce\+sr' has no such parameter"),
        ("ce+sr", {"rho": 0.9}, r"loss\.params\.rho: 0\.9 is outside \[1, inf\]"),
        ("gce+sr", {"tau": -1}, r"loss\.params\.tau: -1\.0 is outside \(0, inf\]"),
        (
            "polysoft",
            {"lam": 1.0, "init_match": "initial"},
            r"loss\.params\.init_match: with 5 classes this loss starts",
        ),
    ],
)
def test_mistakes_name_the_field_and_what_was_meant(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_loss(name, num_classes=5, **params)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [1, 0])
def test_one_class_is_refused(name: str, classes: int) -> None:
    with pytest.raises(ConfigError, match=f"num_classes: a loss needs two classes .* {classes}"):
        build_loss(name, num_classes=classes)


def rows(n: int, classes: int = 5, value: float = 0.0) -> Tensor:
    return torch.full((n, classes), value)


@pytest.mark.parametrize("name", STATELESS)
@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (rows(2), [0, 5], r"target: 5 is not a class; classes go from 0 to 4"),
        (rows(2), [-1, 0], r"target: -1 is not a class"),
        (rows(2), [0.0, 1.0], r"target: torch\.float32 of shape \(2,\), expected integers"),
        (rows(2), [True, False], r"target: torch\.bool of shape \(2,\), expected integers"),
        (rows(2), [0, 1, 2], r"target: .* of shape \(3,\), expected integers of shape \(2,\)"),
        (rows(2), [[0], [1]], r"target: .* of shape \(2, 1\)"),
        (rows(0), [], r"logits: shape \(0, 5\), expected \(N, 5\) with N > 0"),
        (rows(2, 6), [0, 1], r"logits: shape \(2, 6\), expected \(N, 5\)"),
        (rows(5)[0], [0, 1], r"logits: shape \(5,\), expected \(N, 5\)"),
        (torch.tensor(1.0), [0], r"logits: shape \(\), expected \(N, 5\)"),
    ],
)
def test_batches_that_do_not_fit_are_refused(name: str, logits: Tensor, target: list[Any], message: str) -> None:
    with pytest.raises(BatchError, match=message):
        build_loss(name, num_classes=5)(logits, torch.tensor(target))


@pytest.mark.parametrize("name", STATELESS)
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_values_of_broken_logits_are_nan_and_the_others_are_not(name: str, broken: float) -> None:
    logits, target = rows(8), torch.zeros(8, dtype=torch.int64)
    logits[[1, 6], 0] = broken
    value = build_loss(name, num_classes=5)(logits, target)
    assert value.isnan().nonzero()[:, 0].tolist() == [1, 6]
    assert int(value.isfinite().sum()) == 6


@pytest.mark.parametrize(
    ("photos", "named"),
    [
        (["a1"], "photo 'a1'"),
        ([f"p{number}" for number in range(7)], "photo 'p0', 'p1', 'p2', 'p3', 'p4' and 2 more"),
    ],
)
def test_an_error_names_the_photos_whose_loss_is_not_finite(photos: list[str], named: str) -> None:
    error = nonfinite_error(photos, lr=0.0123456)
    assert isinstance(error, BatchError)
    assert str(error) == (
        f"the loss is not finite at the learning rate 0.0123 for {named}; lower train.lr, or look for a broken photo"
    )


def test_labels_are_checked_before_the_first_step() -> None:
    loss = build_loss("ce", num_classes=3)
    for wrong in (3, -1):
        samples = Samples(np.array(["a", "b"], object), np.array([0, wrong]), list("xyz"))
        with pytest.raises(BatchError, match=rf"samples: {wrong} is not a class; classes go from 0 to 2"):
            loss.begin(samples)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_labels_of_any_integer_type(dtype: torch.dtype) -> None:
    logits, target = batch()
    loss = build_loss("gce", num_classes=7, logit_bias=1.0)
    torch.testing.assert_close(loss(logits, target.to(dtype)), loss(logits, target), rtol=0, atol=0)
