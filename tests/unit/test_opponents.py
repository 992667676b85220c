"""Every opponent against a slow reading of its paper, photo by photo."""

from __future__ import annotations

import dataclasses
import json
import math

import compare_opponents
import numpy as np
import pytest
import torch
from find_errors import lost
from noisy import shelves
from noisy.shelves import Shelf
from opponents import OPPONENTS, Evidence, Opinion, deft, early, lemon, nnk, simifeat, wann
from opponents.evidence import directions, nearest
from scipy.optimize import minimize

from models.evaluation.bootstrap import auroc


def drawn(seed: int = 0, *, size: int = 120, num_classes: int = 4) -> tuple[Evidence, np.ndarray]:
    """Clusters with a quarter of the labels wrong, and which these are."""
    draw = np.random.default_rng(seed)
    true = np.arange(size) % num_classes
    views = 1.6 * draw.standard_normal((num_classes, 12))[true] + draw.standard_normal((2, size, 12))
    wrong = draw.random(size) < 0.25
    labels = np.where(wrong, (true + draw.integers(1, num_classes, size)) % num_classes, true)
    probs = np.full((size, num_classes), 0.1 / (num_classes - 1), np.float32)
    probs[np.arange(size), true] = 0.9
    return Evidence(labels, probs, views.astype(np.float32), seed=seed), wrong


def others_by_cosine(unit: np.ndarray, row: int) -> list[int]:
    return sorted(
        (other for other in range(len(unit)) if other != row), key=lambda other: -float(unit[row] @ unit[other])
    )


@pytest.mark.parametrize("name", list(OPPONENTS))
def test_wrong_labels_are_found(name: str) -> None:
    evidence, wrong = drawn()
    opinion = OPPONENTS[name](evidence)
    assert auroc(opinion.suspicion[wrong], opinion.suspicion[~wrong]) > 0.85
    assert opinion.wrong[wrong].mean() > opinion.wrong[~wrong].mean() + 0.5


@pytest.mark.parametrize("name", list(OPPONENTS))
def test_a_class_with_one_photo_and_equal_features_are_judged(name: str) -> None:
    evidence, _ = drawn(size=40)
    labels, views = evidence.labels.copy(), evidence.views.copy()
    labels[labels == 3] = 0
    labels[7] = 3
    views[:, 10:14] = views[:, 10:11]
    opinion = OPPONENTS[name](Evidence(labels, evidence.probs, views))
    assert np.isfinite(opinion.suspicion).all()
    assert opinion.wrong.shape == (40,)


def test_wann_is_its_algorithm() -> None:
    evidence, _ = drawn()
    unit, labels = evidence.unit, evidence.labels
    order = [others_by_cosine(unit, row) for row in range(len(labels))]
    size = []
    for row, near in enumerate(order):
        agreeing = [k for k in range(wann.K_MIN, wann.K_MAX, 2)
                    if np.bincount(labels[near[:k]], minlength=4).argmax() == labels[row]]  # fmt: skip
        size.append(agreeing[0] if agreeing else wann.K_MAX)
    found = wann.wann(evidence)
    for row, near in enumerate(order):
        votes = np.zeros(4)
        for other in near[: size[near[0]]]:
            votes[labels[other]] += 1 / size[other]
        assert found.wrong[row] == (votes.argmax() != labels[row])


def test_nnk_weights_minimise_the_distance_in_the_space_of_the_kernel() -> None:
    evidence, _ = drawn(size=30)
    others = evidence.unit[1:9]
    kernel, to_photo = 0.5 + 0.5 * others @ others.T, 0.5 + 0.5 * others @ evidence.unit[0]

    def distance(w: np.ndarray) -> float:
        return float(w @ kernel @ w - 2 * w @ to_photo)

    slow = minimize(distance, np.full(8, 0.1), bounds=[(0, None)] * 8, method="L-BFGS-B", options={"ftol": 1e-14})
    found = nnk.weights(evidence.unit[0], others)
    assert (found >= 0).all()
    assert distance(found) == pytest.approx(slow.fun, abs=1e-5)


def test_lemon_is_its_formula() -> None:
    evidence, _ = drawn(size=60)
    unit, labels = evidence.unit.astype(np.float64), evidence.labels

    def own(row: int) -> float:
        mates = [other for other in np.flatnonzero(labels == labels[row]) if other != row]
        mean = unit[mates].sum(0)
        return 1 - float(unit[row] @ mean) / math.sqrt(float(mean @ mean))

    for row in range(0, 60, 7):
        near = others_by_cosine(unit, row)[: lemon.K]
        s_n = np.mean([(labels[n] != labels[row]) * math.exp(-lemon.TAU_1 * (1 - unit[row] @ unit[n]))
                       * math.exp(-lemon.TAU_2 * own(n)) for n in near])  # fmt: skip
        mates = [other for other in others_by_cosine(unit, row) if labels[other] == labels[row]][: lemon.K]
        s_m = np.mean([(1 - unit[row] @ unit[m]) * math.exp(-lemon.TAU_2 * own(m)) for m in mates])
        expected = own(row) + lemon.BETA * s_n + lemon.GAMMA * s_m
        assert lemon.lemon(evidence).suspicion[row] == pytest.approx(expected, abs=1e-5)


def test_the_cut_is_between_two_groups() -> None:
    draw = np.random.default_rng(0)
    assert 1 < lemon.otsu(np.concatenate([draw.normal(0, 0.2, 300), draw.normal(3, 0.2, 100)])) < 2.5


def test_a_round_of_simifeat_is_a_vote() -> None:
    evidence, _ = drawn(size=50)
    unit, labels = directions(evidence.views[0]), evidence.labels
    found = simifeat.vote(unit, labels, num_classes=4)
    for row in range(50):
        near = others_by_cosine(unit, row)[: simifeat.K - 1]
        cosines = [float(unit[row] @ unit[other]) for other in near]
        votes = np.zeros(4)
        votes[labels[row]] += 2 * cosines[0] - cosines[1]
        for other, cosine in zip(near, cosines, strict=True):
            votes[labels[other]] += max(cosine, 0)
        assert found.wrong[row] == (votes.argmax() != labels[row])


def test_simifeat_calls_wrong_what_is_outvoted_in_most_rounds() -> None:
    evidence, _ = drawn(size=50)
    draw, votes = np.random.default_rng(evidence.seed), [[] for _ in range(50)]
    for number in range(simifeat.ROUNDS):
        rows = np.sort(draw.permutation(50)[: int(simifeat.PART * 50)])
        unit, labels = directions(evidence.views[number % 2])[rows], evidence.labels[rows]
        one = simifeat.vote(unit, labels, num_classes=4)
        for place, row in enumerate(rows):
            votes[row].append((one.wrong[place], one.suspicion[place]))
    found = simifeat.simifeat(evidence)
    for row, each in enumerate(votes):
        assert found.wrong[row] == (sum(wrong for wrong, _ in each) > len(each) / 2)
        assert found.suspicion[row] == pytest.approx(sum(lead for _, lead in each) / len(each))


def test_a_step_of_elr_is_its_paper() -> None:
    evidence, _ = drawn(size=40)
    head, said = early.trained(evidence, np.arange(40), epochs=1, seed=5, strength=early.STRENGTH)
    torch.manual_seed(5)
    slow = early.Head(12, num_classes=4)
    optimiser = torch.optim.AdamW(slow.parameters(), lr=early.LR, weight_decay=early.WEIGHT_DECAY)
    order = torch.randperm(40)
    logits = slow(torch.from_numpy(evidence.views)[torch.randint(2, (40,)), order]).logits
    p, loss = logits.softmax(1), torch.zeros(())
    for place, row in enumerate(order):
        target = 0.3 * p[place].detach()  # the running mean starts at 0
        torch.testing.assert_close(said[row], target, atol=1e-4, rtol=0)
        loss = loss - p[place, evidence.labels[row]].log() / 40 + 3 * (1 - (target * p[place]).sum()).log() / 40
    loss.backward()
    optimiser.step()
    for one, other in zip(head.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_the_losses_are_their_formulas() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, target = torch.randn(6, 4, generator=draw), torch.tensor([0, 1, 2, 3, 0, 1])
    p = logits.softmax(1)
    expected = [(1 - float(p[i, t]) ** 0.7) / 0.7 for i, t in enumerate(target)]
    assert float(early.gce_loss(logits, target)) == pytest.approx(np.mean(expected), abs=1e-6)
    said = torch.full((6, 4), 0.2)
    new = early.remembered(said, logits)
    torch.testing.assert_close(new, 0.7 * said + 0.3 * p, atol=1e-3, rtol=0)
    slow = [math.log(1 - sum(float(new[i, c]) * float(p[i, c]) for c in range(4))) for i in range(6)]
    assert float(early.regulariser(logits, new)) == pytest.approx(np.mean(slow), abs=1e-3)


def test_deft_compares_a_positive_and_a_negative_row() -> None:
    unit = torch.nn.functional.normalize(torch.randn(3, 5, generator=torch.Generator().manual_seed(0)))
    rows = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 0])
    for row, label in enumerate(labels):
        p = [
            math.exp(deft.SCALE * float(unit[row] @ rows[kind, label]) / float(rows[kind, label].norm()))
            for kind in (0, 1)
        ]
        clean = torch.sigmoid(deft.clean_logit(unit, labels, rows))[row]
        assert float(clean) == pytest.approx(p[0] / (p[0] + p[1]), abs=1e-5)


def test_defts_loss_learns_that_a_photo_is_not_of_another_class() -> None:
    draw = torch.Generator().manual_seed(0)
    unit, rows = torch.nn.functional.normalize(torch.randn(6, 5, generator=draw)), torch.randn(2, 4, 5, generator=draw)
    labels, other = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([1, 2, 3, 0, 2, 3])

    def similarity(row: int, kind: int, label: int) -> float:
        return deft.SCALE * float(unit[row] @ rows[kind, label]) / float(rows[kind, label].norm())

    def clean(row: int, label: int) -> float:
        positive, negative = (math.exp(similarity(row, kind, label)) for kind in (0, 1))
        return positive / (positive + negative)

    slow = []
    for row in range(6):
        label, wrong = int(labels[row]), int(other[row])
        every = [math.exp(similarity(row, 0, each)) for each in range(4)]
        slow.append(
            -math.log(clean(row, label)) - math.log(1 - clean(row, wrong)) - math.log(every[label] / sum(every))
        )
    assert float(deft.loss_of(unit, labels, other, rows)) == pytest.approx(np.mean(slow), rel=1e-4)


def test_deft_judges_a_photo_by_rows_that_did_not_learn_it(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence, _ = drawn(size=60)
    others: list[torch.Tensor] = []
    loss_of = deft.loss_of

    def recording(unit: torch.Tensor, labels: torch.Tensor, other: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        others.append(other - labels)
        return loss_of(unit, labels, other, rows)

    monkeypatch.setattr(deft, "loss_of", recording)
    before = deft.deft(evidence).suspicion
    assert all((each != 0).all() for each in others), "negative learning is of another class"
    monkeypatch.setattr(deft, "learnt", lambda unit, labels, **_: torch.stack([unit[:4], unit[4:8]]))
    fold = deft.folds(evidence.labels, np.random.default_rng(0).permutation(60).astype(str).astype(object), num_folds=5)
    unit, found = torch.from_numpy(evidence.unit), deft.deft(evidence).suspicion
    for row in (0, 17, 59):
        rest = unit[torch.from_numpy(np.flatnonzero(fold != fold[row]))]
        gap = rest[evidence.labels[row]] - rest[4 + evidence.labels[row]]
        assert found[row] == pytest.approx(-deft.SCALE * float(unit[row] @ gap), abs=1e-3)
    assert not np.allclose(before, found)


def test_the_nearest_are_others() -> None:
    evidence, _ = drawn(size=20)
    rows, _ = nearest(evidence.unit, 5)
    assert all(near.tolist() == others_by_cosine(evidence.unit, row)[:5] for row, near in enumerate(rows))


def test_figures_follow_their_definitions() -> None:
    draw = np.random.default_rng(0)
    suspicion, wrong = draw.random(200), draw.random(200) < 0.3
    true = np.arange(200) % 4
    look = np.eye(4, dtype=np.float32)[true]
    shelf = Shelf("", np.where(wrong, (true + 1) % 4, true), true, ((look, look),), test=(2 * look, true))
    found = compare_opponents.measured(Opinion(suspicion > 0.5, suspicion), shelf)
    cuts = [compare_opponents.f1(suspicion >= cut, wrong) for cut in suspicion]
    assert found.best_f1 == pytest.approx(max(cuts))
    worst = np.argsort(-suspicion)
    assert (found.first, found.top) == (100 * wrong[worst[:2]].mean(), 100 * wrong[worst[:10]].mean())
    assert (found.lost_worst, found.lost_median) == lost(shelf, suspicion > 0.5)
    clean = compare_opponents.measured(Opinion(suspicion > 0.9, suspicion), dataclasses.replace(shelf, given=true))
    assert clean.flagged == pytest.approx(100 * (suspicion > 0.9).mean())
    assert math.isnan(clean.f1)
    without_a_class = compare_opponents.measured(Opinion(true == 3, suspicion), dataclasses.replace(shelf, given=true))
    assert (clean.after, without_a_class.after) == (100, 75)
    assert without_a_class.lost_worst == 100
    nothing_left = compare_opponents.measured(Opinion(true >= 0, suspicion), shelf)
    assert nothing_left.after == 0


def test_the_table_has_a_row_for_every_method(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = next(shelves.drawn())
    monkeypatch.setattr(shelves, "drawn", lambda: iter([first]))
    compare_opponents.main([])
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    assert {compare_opponents.OURS, *OPPONENTS} <= set(rows)
    found, accuracy = [json.loads(line) for line in lines if line.startswith('{"figure"')]
    assert found["value"] > 80
    heading = next(line for line in lines if line.startswith("accuracy after; "))
    after = {line.split("|")[1].strip(): float(line.split("|")[2].split(";")[0]) for line in lines[lines.index(heading) + 4 :]
             if line.startswith("| ")}  # fmt: skip
    assert after[compare_opponents.OURS] == pytest.approx(accuracy["value"], abs=0.051)
    assert after[compare_opponents.GIVEN] < accuracy["value"] <= after[compare_opponents.TRUTH] + 3
