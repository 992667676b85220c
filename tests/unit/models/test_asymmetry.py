"""Proved properties of losses: symmetry, bounds, asymmetry, and the noise rate that is tolerated."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.losses import Loss, asymmetry_ratio, build_loss, max_noise
from models.losses.asymmetric import needed_dominance

LOGITS = st.lists(st.floats(-30, 30), min_size=3, max_size=9)
# Sum of the values over all labels, for C classes.
SYMMETRIC: dict[str, Any] = {
    "mae": lambda c: c - 1,
    "rce": lambda c: -math.log(1e-4) * (c - 1),
    "nce": lambda c: 1,
    "nfl": lambda c: 1,
    "ngce": lambda c: 1,
    "nmae": lambda c: 1,
    "nnce": lambda c: c - 1,
    "nce+mae": lambda c: 1 + c - 1,
    "nfl+rce": lambda c: 1 - math.log(1e-4) * (c - 1),
    "anl_ce": lambda c: 5 + 5 * (c - 1),
}
# Least and largest value of a sample.
BOUNDS: list[tuple[str, dict[str, Any], float, float]] = [
    ("mae", {"scale": 2.0}, 0, 2),
    ("rce", {}, 0, -math.log(1e-4)),
    ("gce", {"q": 0.7}, 0, 1 / 0.7),
    ("agce", {"a": 0.6, "q": 0.6}, 0, (1.6**0.6 - 0.6**0.6) / 0.6),
    ("aul", {"a": 5.5, "q": 3.0}, 0, (5.5**3 - 4.5**3) / 3),
    ("ael", {"a": 2.5}, math.exp(-1 / 2.5), 1),
    ("nce", {}, 0, 1),
    ("nfl", {}, 0, 1),
    ("ngce", {}, 0, 1),
    ("nnce", {}, 0, 1),
    ("polysoft", {"lam": 4.0, "d": 2.0}, 0, 2),
    ("amse", {"a": 30.0}, 29**2, 30**2 + 1),
]
# Functions of p_y alone, whose ratio can be found by a search on a grid.
OF_P: list[tuple[str, dict[str, Any]]] = [
    ("agce", {"a": 0.6, "q": 0.6}),
    ("agce", {"a": 4.0, "q": 0.2}),
    ("agce", {"a": 0.6, "q": 1.5}),
    ("agce", {"a": 1e-5, "q": 0.5}),
    ("aul", {"a": 5.5, "q": 3.0}),
    ("aul", {"a": 6.3, "q": 1.5}),
    ("aul", {"a": 3.0, "q": 0.1}),
    ("ael", {"a": 2.5}),
    ("ael", {"a": 0.5}),
    ("mae", {}),
    ("rce", {}),
    ("nmae", {}),
    ("gce", {"q": 1.0}),
    ("sce", {"alpha": 0.0}),
]
SUMS: list[tuple[str, dict[str, Any]]] = [
    ("nce+agce", {"beta": 4.0, "a": 0.6, "q": 0.6}),
    ("nfl+aul", {"a": 6.3, "q": 1.5}),
    ("anl_ce", {}),
    ("nce+amse", {"a": 3.0, "beta": 1.0}),
]


def labels_of(loss: Loss, row: list[float]) -> Tensor:
    """(C,) losses of one row of logits for every label."""
    logits = torch.tensor(row, dtype=torch.float64).expand(len(row), -1)
    return loss(logits.contiguous(), torch.arange(len(row)))


def of_p(loss: Loss, p: Tensor) -> Tensor:
    """Loss at p_y = p, any shape, in [0, 1], for two classes."""
    z = (p.log() - (1 - p).log()).clamp(-800, 800).flatten()
    value = loss(torch.stack([z, torch.zeros_like(z)], 1), torch.zeros(len(z), dtype=torch.int64))
    return value.reshape(p.shape)


@pytest.mark.parametrize("name", SYMMETRIC)
@given(row=LOGITS)
@settings(max_examples=25, deadline=None)
def test_symmetric_losses_sum_to_a_constant_over_the_labels(name: str, row: list[float]) -> None:
    loss = build_loss(name, num_classes=len(row))
    assert float(labels_of(loss, row).sum()) == pytest.approx(SYMMETRIC[name](len(row)), rel=1e-9)
    assert asymmetry_ratio(loss) == 1


@given(row=LOGITS, q=st.floats(0.01, 1))
@settings(max_examples=60, deadline=None)
def test_gce_sums_within_the_bounds_of_its_paper(row: list[float], q: float) -> None:
    """Zhang and Sabuncu 2018, lemma 2: (C - C^(1 - q)) / q <= sum over the labels <= (C - 1) / q."""
    classes = len(row)
    total = float(labels_of(build_loss("gce", num_classes=classes, q=q), row).sum())
    assert (classes - classes ** (1 - q)) / q - 1e-9 <= total <= (classes - 1) / q + 1e-9


@pytest.mark.parametrize(("name", "params", "low", "high"), BOUNDS)
@given(row=LOGITS)
@example(
    row=[20.378015114651696, -14.0, -13.544341143482395]
)  # rounding with the third logit puts log p of the first above 0
@settings(max_examples=20, deadline=None)
def test_bounded_losses_stay_within_their_bounds(
    name: str, params: dict[str, Any], low: float, high: float, row: list[float]
) -> None:
    values = labels_of(build_loss(name, num_classes=len(row), **params), row)
    assert low - 1e-9 <= float(values.min())
    assert float(values.max()) <= high + 1e-9


@pytest.mark.parametrize(("name", "params", "low", "high"), [case for case in BOUNDS if case[0] in ("ael", "aul")])
def test_the_bounds_are_reached(name: str, params: dict[str, Any], low: float, high: float) -> None:
    loss = build_loss(name, num_classes=2, **params)
    ends = of_p(loss, torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert ends.tolist() == pytest.approx([low, high])


def brute_ratio(loss: Loss) -> float:
    """inf over u1, u2 >= 0, u1 + u2 <= 1, u2 > 0 of [l(u1) - l(u1 + u2)] / [l(0) - l(u2)], on a grid."""
    steps = torch.cat([torch.logspace(-6, -2, 30, dtype=torch.float64), torch.linspace(0.02, 1, 60).double()])
    u2 = steps[:, None]
    u1 = (1 - u2) * torch.linspace(0, 1, 60).double()[None]
    u2 = u2.expand_as(u1)
    drop = of_p(loss, u1) - of_p(loss, (u1 + u2).clamp(max=1))
    return float((drop / (of_p(loss, torch.zeros_like(u2)) - of_p(loss, u2))).min())


@pytest.mark.parametrize(("name", "params"), OF_P)
def test_the_ratio_is_the_one_found_on_a_grid(name: str, params: dict[str, Any]) -> None:
    loss = build_loss(name, num_classes=2, **params)
    ratio = asymmetry_ratio(loss)
    assert ratio > 0
    assert ratio * (1 - 1e-6) <= brute_ratio(loss) <= ratio * 1.03 + 1e-4


@pytest.mark.parametrize("name", ["ce", "focal", "gce", "sce"])
def test_losses_without_a_ratio_are_never_asymmetric(name: str) -> None:
    loss = build_loss(name, num_classes=2)
    assert asymmetry_ratio(loss) == 0
    assert max_noise(loss, 10, "pair") == max_noise(loss, 10, "symmetric") == 0
    assert brute_ratio(loss) < 0.1


def test_a_sum_has_the_least_ratio_of_the_parts_that_count() -> None:
    def ratio(**params: Any) -> float:
        return asymmetry_ratio(build_loss("nce+agce", num_classes=10, a=0.6, q=0.6, **params))

    alone = asymmetry_ratio(build_loss("agce", num_classes=10, a=0.6, q=0.6))
    assert ratio() == ratio(alpha=0.0) == alone
    assert ratio(beta=0.0) == 1
    assert asymmetry_ratio(build_loss("ce+sr", num_classes=10)) == 0


@pytest.mark.parametrize(
    ("name", "params", "needed", "pair", "symmetric"),
    [
        ("agce", {"a": 0.6, "q": 0.6}, 1.48, 0.403, 0.859),
        ("agce", {"a": 4.0, "q": 0.2}, 1.20, 0.456, 0.883),
        ("agce", {"a": 6.0, "q": 1.5}, 1, 0.5, 0.9),
        ("aul", {"a": 3.0, "q": 0.1}, 1, 0.5, 0.9),
        ("mae", {}, 1, 0.5, 0.9),
        ("aul", {"a": 5.5, "q": 3.0}, 1.49, 0.401, 0.858),
        ("aul", {"a": 6.3, "q": 1.5}, 1.09, 0.478, 0.892),
        ("ael", {"a": 2.5}, 1.49, 0.401, 0.858),
        ("ael", {"a": 3.5}, 1.33, 0.429, 0.871),
        ("ael", {"a": 5.0}, 1.22, 0.450, 0.881),
        ("agce", {"a": 1e-5, "q": 0.5}, 316, 0.003, 0.028),
        ("amse", {"a": 30.0}, 31 / 29, 29 / 60, 9 / (9 + 39 / 29)),  # several wrong labels count more than one
    ],
)
def test_the_noise_that_is_tolerated(
    name: str, params: dict[str, Any], needed: float, pair: float, symmetric: float
) -> None:
    loss = build_loss(name, num_classes=10, **params)
    assert 1 / asymmetry_ratio(loss) == pytest.approx(needed, rel=0.005)
    assert max_noise(loss, 10, "pair") == pytest.approx(pair, abs=6e-4)
    assert max_noise(loss, 10, "symmetric") == pytest.approx(symmetric, abs=6e-4)


def test_tolerance_of_symmetric_noise_is_nearly_free_at_many_classes() -> None:
    loss = build_loss("agce", num_classes=50030)
    assert max_noise(loss, 50030, "symmetric") > 0.9999
    assert max_noise(loss, 50030, "pair") == pytest.approx(0.403, abs=6e-4)


def test_tolerated_noise_leaves_the_clean_label_just_dominant() -> None:
    """Definition: at the noise rate eta the true label has the weight 1 - eta, each of n wrong labels eta / n."""
    for name, params in (*OF_P, *SUMS):
        loss = build_loss(name, num_classes=10, **params)
        for kind, rivals in (("pair", 1), ("symmetric", 9)):
            eta = max_noise(loss, 10, kind)  # type: ignore[arg-type]  # the two literals
            assert (1 - eta) * rivals / eta == pytest.approx(needed_dominance(loss, 10, kind))  # type: ignore[arg-type]


ROW = st.lists(st.floats(-8, 8), min_size=4, max_size=4)


def check_clean_wins(loss: Loss, row: list[float], rivals: Tensor) -> None:
    """Asserts that no output costs less than the one-hot one if the first label is just dominant enough."""
    needed = needed_dominance(loss, 4, "symmetric")  # the strictest: all wrong labels have the second largest weight
    weights = torch.cat([rivals.max()[None] * needed * 1.001, rivals])
    least = float(weights @ labels_of(loss, [2000.0, 0.0, 0.0, 0.0]))
    assert least <= float(weights @ labels_of(loss, row)) * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize(("name", "params"), [*OF_P, ("amse", {"a": 5.0})])
@given(row=ROW, rivals=st.lists(st.floats(0.01, 1), min_size=3, max_size=3))
@settings(max_examples=25, deadline=None)
def test_dominant_clean_labels_win(name: str, params: dict[str, Any], row: list[float], rivals: list[float]) -> None:
    check_clean_wins(build_loss(name, num_classes=4, **params), row, torch.tensor(rivals, dtype=torch.float64))


@pytest.mark.parametrize(("name", "params"), SUMS)
@given(row=ROW)
@settings(max_examples=25, deadline=None)
def test_sums_with_a_normalised_loss_tolerate_symmetric_noise(
    name: str, params: dict[str, Any], row: list[float]
) -> None:
    check_clean_wins(build_loss(name, num_classes=4, **params), row, torch.ones(3, dtype=torch.float64))


def test_a_normalised_loss_alone_need_not_force_the_clean_label_under_pair_noise() -> None:
    """The value of a wrong label may exceed 1 / (C - 1), as that of a label that never occurs (see Symmetric)."""
    loss = build_loss("nce", num_classes=3)
    weights = torch.tensor([0.6, 0.4, 0.0], dtype=torch.float64)
    one_hot, torn = ([2000.0, 0.0, 0.0], [2000.0, 1999.0, 0.0])
    assert float(weights @ labels_of(loss, torn)) < 0.01 < float(weights @ labels_of(loss, one_hot))


def test_less_dominance_than_needed_may_lose() -> None:
    """AGCE needs 1.48 with one wrong label: at 1.4 a mixed output costs less."""
    loss = build_loss("agce", num_classes=2, a=0.6, q=0.6)
    p = torch.linspace(0, 1, 101).double()
    for dominance, clean_wins in ((1.5, True), (1.4, False)):
        cost = dominance * of_p(loss, p) + of_p(loss, 1 - p)
        assert bool(cost[-1] <= cost.min() + 1e-12) == clean_wins
