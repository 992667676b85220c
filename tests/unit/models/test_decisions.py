"""Photos that losses with state leave out: by their rules, and on clusters with planted wrong labels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.unit.models.stateful import (
    Task,
    batch,
    begin_loss,
    marvel_after,
    run_epochs,
)


def test_truncation_keeps_equality_in_both_precisions() -> None:
    for dtype in (torch.float32, torch.float64):
        loss = begin_loss("truncated_gce", [0, 0, 0, 0], classes=2, n_min=1, max_share=0.9)
        loss.take_answers(torch.tensor([0.5, 0.5 - 1e-6, 0.1, 0.9], dtype=dtype).log(), accuracy=0.3)
        assert loss.known["kept"].tolist() == [True, False, False, True]
        assert loss.figures() == {"kept_share": 0.5}
        value = loss(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64), torch.arange(4))
        full = (1 - 0.5**0.7) / 0.7
        assert value.tolist() == pytest.approx([2 * full, 0, 0, 2 * full]), "the mean is that of the kept"


def test_truncation_asks_at_its_epochs_and_believes_the_best_model_so_far() -> None:
    loss = begin_loss("truncated_gce", [0] * 4, classes=2, start_epoch=2, every=3, n_min=1)
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
    loss = begin_loss("truncated_gce", [0] * 4, classes=2, n_min=1)
    for answers, kept in (([0, 0, 0, -9.0], 3), ([0, 0, -9.0, -9.0], 2), ([0.0] * 4, 4)):
        loss.take_answers(torch.tensor(answers), accuracy=math.nan)
        assert loss.known["kept"].sum() == kept


def test_rank_based_truncation_prunes_the_same_share_of_every_class() -> None:
    target = np.repeat([0, 1], [10, 20])
    log_p = torch.linspace(-20, -10, 30)  # far below 0.5
    loss = begin_loss("truncated_gce", target, classes=2, k_quantile=0.2)
    loss.take_answers(log_p, accuracy=0.5)
    assert np.bincount(target[~loss.known["kept"]]).tolist() == [2, 4]
    published = begin_loss("truncated_gce", target, classes=2)
    published.take_answers(log_p, accuracy=0.5)
    assert np.bincount(target[~published.known["kept"]]).tolist() == [5, 10], "half of each, by max_share"


def test_marvel_abandons_after_a_run_of_small_margins_for_good() -> None:
    nan = math.nan
    loss = marvel_after([[-1, -1, 1, -1], [-1, 1, 1, nan], [9, -1, 1, nan], [9, 1, 1, -1], [9, 1, 1, 5]])
    assert loss.known["abandoned"].tolist() == [2, -1, -1, 4], "a photo that does not occur keeps its run"
    assert loss.figures() == {"abandoned_share": 0.5, "flagged_share": 0.0}
    value = loss(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64), torch.arange(4))
    assert value.tolist() == pytest.approx([0, 2 * math.log(2), 2 * math.log(2), 0])


def test_marvel_waits_for_its_first_epoch() -> None:
    margins = [[-1.0, 1.0, 1.0]] * 3
    assert marvel_after(margins, start_epoch=4).known["abandoned"].tolist() == [-1, -1, -1]
    assert marvel_after(margins, start_epoch=3).known["abandoned"].tolist() == [3, -1, -1]


def test_marvel_readmits_where_it_is_reversible() -> None:
    margins = [[-1.0, 1.0]] * 2 + [[1.0, 1.0]] * 2
    assert marvel_after(margins, reversible=True).known["abandoned"].tolist() == [-1, -1]
    assert marvel_after(margins[:3], reversible=True).known["abandoned"].tolist() == [2, -1]
    assert marvel_after(margins).known["abandoned"].tolist() == [2, -1]


def test_marvel_plus_weights_up_the_arduous_and_keeps_the_mean() -> None:
    loss = begin_loss("marvel+", [0] * 5, classes=2, run=2, relative="none", n_min=1, max_share=0.9, gain=3.0, band=0.5)
    run_epochs(loss, [[0.4, 2, -0.3, -3, -0.1]] * 1)
    run_epochs(loss, [[0.4, 2, 0.2, -3, math.nan]], first=6)
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
            loss = begin_loss("marvel", target.numpy(), classes=10, margin=kind, **options)
            loss.start_epoch(0)
            loss(logits, target, index)
            loss.end_epoch()
            np.testing.assert_allclose(loss.known["margin"], margin, rtol=1e-5, atol=1e-6)


def test_aum_flags_below_the_percentile_of_the_extra_class() -> None:
    loss = begin_loss("aum", [0] * 40 + [1] * 40, classes=2, share=0.1, decision_epoch=1, max_share=0.2, n_min=2)
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
    """Masks of the photos that are left out, and of those whose label is a tail class."""
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
