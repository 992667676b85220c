"""The posterior against a slow reading of its model; how many labels it flags; which evidence it believes."""

from __future__ import annotations

import numpy as np
import pytest

from models.cleaning import RULES, find_label_errors, label_quality
from models.cleaning.evidence import gather_evidence
from models.cleaning.mixture import FEW_WRONG, LAST_STEPS, PRIOR, SHARPER, STEPS, SURE_RATE, Evidence, f1_cut, posterior
from models.cleaning.names import Names
from models.cleaning.rule_input import gather
from models.cleaning.tilt import NamePrior
from models.errors import CleaningError
from tests.unit.models.clusters import clusters


class SlowModel:
    """The model of `models.cleaning.mixture`, photo by photo, with dense tables and all classes as candidates."""

    def __init__(self, kinds: np.ndarray, y: np.ndarray, start: np.ndarray, prior: np.ndarray) -> None:
        """kinds: (F, N, C) evidence by class; prior: (C, C) shares of the given labels of each class after the first step."""
        self.kinds, self.y, self.start, self.weights = kinds, y, start, start.copy()
        num_classes = self.num_classes = kinds.shape[2]
        self.habit, self.count = (
            np.full((num_classes, num_classes), 1 / (num_classes - 1)),
            np.zeros((num_classes,) * 2),
        )
        self.prior = prior
        self.size, self.wrong, self.photo, self.rate = np.ones(num_classes), np.full(num_classes, 0.2), 0.3, 0.2

    def stories(self, i: int, habit: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Belief (C,), then P(habit), P(photo) by true class (C,) and P(right), given the label of photo i."""
        y, logits = self.y[i], np.tensordot(self.weights, self.kinds[:, i], 1)
        q = np.exp(logits - logits.max())
        q /= q.sum()
        by_habit, by_photo = np.zeros(self.num_classes), np.zeros(self.num_classes)
        for j in range(self.num_classes):
            if j != y:
                by_habit[j] = q[j] * self.wrong[j] * (1 - self.photo) * habit[j]
                by_photo[j] = q[j] * self.wrong[j] * self.photo * q[y] / (1 - q[j])
        right = q[y] * (1 - self.wrong[y])
        total = right + by_habit.sum() + by_photo.sum()
        return q, by_habit / total, by_photo / total, right / total

    def step(self, *, learn: bool) -> None:
        """One step of expectation maximisation."""
        count, erring, right = np.zeros((self.num_classes,) * 2), np.zeros(self.num_classes), np.zeros(self.num_classes)
        photo, slope, curve = 0.0, np.zeros(len(self.start)), np.zeros((len(self.start),) * 2)
        for i, y in enumerate(self.y):
            q, by_habit, by_photo, is_right = self.stories(i, self.habit[:, y])
            count[:, y] += by_habit
            erring += by_habit + by_photo
            right[y] += is_right
            photo += by_photo.sum()
            found = by_habit + by_photo
            found[y] = is_right
            x = self.kinds[:, i]
            slope += x @ (found - q)
            apart = x - (x @ q)[:, None]
            curve += (q * apart) @ apart.T
        if learn:
            slope -= PRIOR * (self.weights / self.start - 1) / self.start
            move = np.linalg.solve(curve + PRIOR * np.diag(1 / self.start**2), slope)
            self.weights = np.maximum(self.weights + np.clip(move, -self.start / 2, self.start / 2), 0)
        self.rate = erring.sum() / len(self.y)
        least = 10 * max(self.rate, 0.01)
        self.count, self.size = count, count.sum(1) + least
        self.habit = (count + least * self.prior) / self.size[:, None]
        self.wrong = np.clip((erring + 10 * self.rate) / (right + erring + 10), 1e-4, 0.95)
        self.photo = photo / erring.sum()

    def fit(self) -> np.ndarray:
        """(N,) probability that each label is right."""
        for _ in range(STEPS):
            self.step(learn=True)
        self.weights = self.weights * (1 + SHARPER * self.photo * min(1, max(0, self.rate - FEW_WRONG) / SURE_RATE))
        for _ in range(LAST_STEPS):
            self.step(learn=False)
        return np.array([self.conclude(i) for i in range(len(self.y))])

    def conclude(self, i: int) -> float:
        """P(right) with the photo's own part taken out of the habits."""
        y = self.y[i]
        own = np.minimum(self.stories(i, self.habit[:, y])[1], self.count[:, y])
        return self.stories(i, self.habit[:, y] - own / self.size)[3]


@pytest.mark.parametrize("tilt", [0.0, 3.0])
def test_the_posterior_is_its_model(tilt: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NamePrior, "learn", lambda self, before, count: tilt)
    names = ["Oat Milk", "Milk", "Oat Bread", "White Bread", "Soap"]
    y, _, p, x = clusters(90, num_classes=5, wrong=0.3)
    evidence = gather_evidence(gather(y, p, x, names=names), count=10, ridge=0.5, most=1000)
    by_class = np.full((3, 90, 5), np.nan)
    for k in range(evidence.ids.shape[1]):
        rows = np.flatnonzero(evidence.ids[:, k] >= 0)
        by_class[:, rows, evidence.ids[rows, k]] = evidence.kinds[:, rows, k]
    assert np.isfinite(by_class).all(), "with five classes all are candidates"
    likeness = Names(names).likeness(np.repeat(np.arange(5), 5), np.tile(np.arange(5), 5)).reshape(5, 5)
    prior = np.exp(tilt * likeness) * (1 - np.eye(5))
    expected = SlowModel(by_class, y, evidence.start, prior / prior.sum(1, keepdims=True)).fit()
    assert posterior(evidence).probs[:, 0] == pytest.approx(expected, abs=1e-3)
    assert ((expected < 0.5) & (expected > 0)).sum() > 10


@pytest.mark.parametrize("kind", ["random", "siblings"])
@pytest.mark.parametrize("wrong", [0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6])
def test_as_many_labels_are_flagged_as_are_wrong(wrong: float, kind: str) -> None:
    if kind == "siblings" and wrong > 0.3:
        pytest.skip("at half and half the usual label is unknown")
    y, true, p, x = clusters(1600, num_classes=8, wrong=wrong, seed=3)
    if kind == "siblings":
        y = np.where(y != true, (true + 1) % 8, true)
        p = leaning(p, true, wrong)
    flagged = find_label_errors(y, p, x, floor_share=0.0, floor_count=1)
    assert flagged.mean() == pytest.approx((y != true).mean(), abs=0.02)


def leaning(p: np.ndarray, true: np.ndarray, wrong: float) -> np.ndarray:
    """Probabilities of networks that learnt from labels of which a share is that of the next class."""
    return np.asarray((1 - wrong) * p + wrong * np.roll(p, 1, axis=1), np.float32)


def test_hardly_a_right_label_is_flagged_though_classes_overlap() -> None:
    draw = np.random.default_rng(0)
    true = draw.integers(0, 6, 1500)
    centres = draw.normal(size=(6, 16))
    x = (centres[true] + 1.3 * draw.normal(size=(1500, 16))).astype(np.float32)
    logits = -((x[:, None] - centres) ** 2).sum(2) / (2 * 1.3**2)
    p = np.exp(0.5 * (logits - logits.max(1, keepdims=True)))
    p = (p / p.sum(1, keepdims=True)).astype(np.float32)
    assert (p.argmax(1) != true).mean() > 0.02
    assert find_label_errors(true, p, x).mean() <= 0.01


def f1(flagged: np.ndarray, wrong: np.ndarray) -> float:
    return float(2 * (flagged & wrong).sum() / max(1, flagged.sum() + wrong.sum()))


def seen(true: np.ndarray, seed: int, blur: float, width: int = 24) -> np.ndarray:
    """Embeddings by another encoder of the photos of these classes."""
    draw = np.random.default_rng(seed)
    return (draw.normal(size=(true.max() + 1, width))[true] + blur * draw.normal(size=(len(true), width))).astype("f4")


@pytest.mark.parametrize("blurs", [(1.5, 2.5), (2.5, 1.5), (2, 2), (1.5, 2, 3)])
def test_several_encoders_are_no_worse_than_the_best(blurs: tuple[float, ...]) -> None:
    y, true, p, _ = clusters(1200, wrong=0.3, seed=7)
    encoders = [seen(true, number, blur) for number, blur in enumerate(blurs)]
    alone = [f1(find_label_errors(y, p, one), y != true) for one in encoders]
    together = f1(find_label_errors(y, p, encoders), y != true)
    assert together >= max(alone) - 0.01


@pytest.mark.parametrize("broken", ["noise", "constant"])
def test_an_encoder_that_says_nothing_changes_nothing(broken: str) -> None:
    y, true, p, x = clusters(1200, wrong=0.3, seed=7)
    nothing = np.ones_like(x) if broken == "constant" else np.random.default_rng(1).normal(size=x.shape).astype("f4")
    alone, both = (find_label_errors(y, p, encoders) for encoders in (x, [x, nothing]))
    assert (alone != both).mean() < 0.01
    assert f1(both, y != true) >= f1(alone, y != true) - 0.005


def test_an_encoder_with_nan_is_refused() -> None:
    y, _, p, x = clusters(60)
    x[7, 3] = np.nan
    with pytest.raises(CleaningError, match="NaN or infinity, first in row 7"):
        find_label_errors(y, p, [np.ones_like(x), x])


def test_one_encoder_is_a_list_of_one() -> None:
    y, _, p, x = clusters(200)
    for rule in RULES.components:
        assert np.array_equal(label_quality(y, p, [x], rule=rule), label_quality(y, p, x, rule=rule))


def test_evidence_that_contradicts_the_labels_loses_its_weight() -> None:
    y, _, p, x = clusters(600)
    evidence = gather_evidence(gather(y, p, x), count=10, ridge=0.5, most=1000)
    lies = np.random.default_rng(0).normal(scale=5, size=evidence.kinds[:1].shape).astype(np.float32)
    more = Evidence(np.concatenate([evidence.kinds, lies]), evidence.ids, np.append(evidence.start, 1.0), 8, 8)
    flagged = [posterior(each).probs[:, 0] < 0.5 for each in (evidence, more)]
    assert (flagged[0] != flagged[1]).sum() <= 2


def test_the_cut_has_the_best_expected_f1() -> None:
    draw = np.random.default_rng(0)
    for sharpness in (0.3, 1, 3):
        wrong = draw.beta(sharpness / 2, sharpness, 300)
        expected = [2 * wrong[wrong >= cut].sum() / ((wrong >= cut).sum() + wrong.sum()) for cut in np.sort(wrong)]
        cut = f1_cut(wrong, least=0)
        found = 2 * wrong[wrong >= cut].sum() / ((wrong >= cut).sum() + wrong.sum())
        assert found == pytest.approx(max(expected))
        assert cut == pytest.approx(max(expected) / 2)


def test_the_cut_of_certainties_and_of_nothing() -> None:
    assert f1_cut(np.array([0.0, 1.0, 0.0])) == 0.5
    assert f1_cut(np.zeros(5)) == f1_cut(np.zeros(0)) == 0.5
    assert f1_cut(np.full(100, 0.01)) == pytest.approx(1 / 3), "a low rate does not make random flags right"


def test_all_labels_wrong_is_told_as_few_of_them_are_found(caplog: pytest.LogCaptureFixture) -> None:
    """Wrong labels are found by the right ones around them."""
    _, true, p, x = clusters(400)
    labels = (true + np.random.default_rng(0).integers(1, 8, 400)) % 8
    assert (label_quality(labels, p, x) < 0.5).mean() < 0.5
    assert "of the labels are the most probable class, as by chance" in caplog.text
    kept = ~find_label_errors(labels, p, x)
    assert (np.bincount(labels[kept], minlength=8) >= np.minimum(np.bincount(labels, minlength=8), 5)).all()


def test_all_labels_wrong_in_the_same_way_are_other_names_of_the_classes() -> None:
    """No rule can see it: heads that learn from such labels predict them."""
    _, true, p, x = clusters(400)
    right, renamed = label_quality(true, p, x), label_quality((true + 1) % 8, np.roll(p, 1, axis=1), x)
    assert renamed == pytest.approx(right, abs=1e-3)
    assert (renamed < 0.5).mean() < 0.05
