"""The prior of confusions from names: against a slow reading, found where it is drawn, and off where names say nothing."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from models.cleaning import estimate_noise, find_label_errors, label_quality, suggest_labels
from models.cleaning.evidence import gather_evidence
from models.cleaning.mixture import fitted
from models.cleaning.names import Names
from models.cleaning.noise import Pairs
from models.cleaning.rule_input import gather
from models.cleaning.tilt import MOST_TILT, SAMPLE, NamePrior, name_prior
from models.errors import CleaningError
from models.evaluation.bootstrap import auroc
from tests.unit.models.clusters import KINDS, NAMES, named_clusters

CODES = [f"SKU-{number}" for number in np.random.default_rng(0).permutation(900)[: len(NAMES)]]


def prior(names: list[str], seed: int = 0, num: int = 200, present: np.ndarray | None = None) -> NamePrior:
    """The prior of pairs drawn at random."""
    ids = np.random.default_rng(seed).integers(0, len(names), (num, 3)).astype(np.int32)
    ids[:, 1:][ids[:, 1:] == ids[:, :1]] = -1
    pairs = Pairs(ids, len(names))
    return name_prior(names, pairs, np.ones(len(names), np.bool_) if present is None else present)


def confused(prior: NamePrior, tilt: float, names: list[str], *, each: int = 12, seed: int = 0) -> np.ndarray:
    """(E,) number of times that each pair occurs if every class has wrong labels drawn with this tilt."""
    draw, num = np.random.default_rng(seed), len(names)
    count = np.zeros((num, num))
    for true in range(num):
        share = np.exp(tilt * Names(names).likeness(np.full(num, true), np.arange(num)).astype(float))
        share[true] = 0
        np.add.at(count[true], draw.choice(num, each, p=share / share.sum()), 1)
    return count[prior.pairs.true, prior.pairs.given]


def learnt(prior: NamePrior, count: np.ndarray) -> float:
    """The tilt after many steps."""
    tilt = 0.0
    for _ in range(40):
        tilt = prior.learn(tilt, count)
    return tilt


@pytest.mark.parametrize("tilt", [0.5, 3.0, 8.0])
def test_the_shares_are_those_of_a_slow_reading(tilt: float) -> None:
    present = np.arange(len(NAMES)) % 7 > 0
    ids = np.random.default_rng(0).choice(np.flatnonzero(present), (200, 3)).astype(np.int32)
    ids[:, 1:][ids[:, 1:] == ids[:, :1]] = -1
    found = name_prior(NAMES, Pairs(ids, len(NAMES)), present)
    for true, given, share in zip(found.pairs.true, found.pairs.given, found.shares(tilt), strict=True):
        others = np.flatnonzero(present & (np.arange(len(NAMES)) != true))
        weight = np.exp(tilt * Names(NAMES).likeness(np.full(len(others), true), others).astype(float))
        assert share == pytest.approx(weight[others == given][0] / weight.sum(), rel=0.03)


def test_without_a_tilt_every_class_has_the_same_share() -> None:
    assert prior(NAMES).shares(0) == pytest.approx(np.full(len(prior(NAMES).pairs), 1 / (len(NAMES) - 1)))
    assert prior(NAMES).shares(1e-9) == pytest.approx(prior(NAMES).shares(0))


def test_a_sample_stands_for_many_classes() -> None:
    names = [f"{brand} {kind} {size}" for brand in range(40) for kind in KINDS for size in ("small", "large", "family")]
    assert len(names) > SAMPLE
    found = prior(names, num=500)
    assert found.rest.sum(1) + np.bincount(found.pairs.true, minlength=len(names)) == pytest.approx(
        len(names) - 1, rel=1e-5
    )
    exact = [
        np.exp(3 * Names(names).likeness(np.full(len(names), true), np.arange(len(names)))) for true in range(0, 720, 9)
    ]
    total = np.array([each.sum() - np.exp(3) for each in exact])
    assert found._moments(3.0)[0][::9] == pytest.approx(total, rel=0.25)


@pytest.mark.parametrize("tilt", [3.0, 6.0])
def test_the_tilt_of_drawn_confusions_is_found(tilt: float) -> None:
    every = prior(NAMES, num=20_000)
    found = learnt(every, confused(every, tilt, NAMES))
    assert 0.4 * tilt < found <= 1.1 * tilt


@pytest.mark.parametrize("seed", range(5))
def test_confusions_at_random_have_no_tilt(seed: int) -> None:
    every = prior(NAMES, num=20_000)
    assert learnt(every, confused(every, 0, NAMES, seed=seed)) < 0.5


def test_few_confusions_hardly_have_a_tilt() -> None:
    every = prior(NAMES, num=20_000)
    one = np.zeros(len(every.pairs))
    one[np.argmax(every.likeness)] = 40
    assert learnt(every, one) < 0.5
    assert learnt(every, one / 80) == 0


def test_one_habit_is_one_habit_however_often_it_recurs() -> None:
    every = prior(NAMES, num=20_000)
    count = confused(every, 3, NAMES)
    assert learnt(every, 50 * (count > 0)) == pytest.approx(learnt(every, 500 * (count > 0)), abs=1e-6)


@pytest.mark.parametrize("names", [CODES, [""] * len(NAMES), ["milk", "MILK"] * 15])
def test_names_that_say_nothing_have_no_tilt(names: list[str]) -> None:
    every = prior(NAMES, num=20_000)
    silent = name_prior(names, every.pairs, np.ones(len(NAMES), np.bool_))
    assert learnt(silent, confused(every, 6, NAMES)) == 0


def test_equal_names_are_no_end_of_a_tilt() -> None:
    names = [name for kind in KINDS for name in (kind, kind.upper())]
    every = prior(names, num=5000)
    swapped = 30.0 * (every.pairs.true == every.pairs.given ^ 1)
    assert 1 < learnt(every, swapped) <= MOST_TILT
    assert (every.shares(MOST_TILT) <= 1).all()


def f1(flagged: np.ndarray, wrong: np.ndarray) -> float:
    return float(2 * (flagged & wrong).sum() / (flagged.sum() + wrong.sum()))


def found_tilt(names: list[str], drawn: tuple[np.ndarray, ...]) -> float:
    """The tilt that is learnt with the labels."""
    y, _, p, x = drawn
    return fitted(gather_evidence(gather(y, p, x, names=names), count=10, ridge=0.5, most=10_000))[1].tilt


@pytest.mark.parametrize("seed", range(3))
def test_names_rank_wrong_labels_better_where_confusions_follow_them(seed: int) -> None:
    y, true, p, x = drawn = named_clusters(NAMES, 7, seed=seed)
    assert found_tilt(NAMES, drawn) > 1
    plain, named = (label_quality(y, p, x, names=names) for names in (None, NAMES))
    right = y == true
    assert auroc(named[right], named[~right]) > auroc(plain[right], plain[~right]) + 0.0005


@pytest.mark.parametrize("tilt", [0, 7])
def test_shuffled_names_change_nothing(tilt: float) -> None:
    drawn = named_clusters(NAMES, tilt)
    y, true, p, x = drawn
    shuffled = list(np.random.default_rng(3).permutation(NAMES))
    assert found_tilt(shuffled, drawn) < 0.5
    plain, named = (f1(find_label_errors(y, p, x, names=names), y != true) for names in (None, shuffled))
    assert named == pytest.approx(plain, abs=0.002)


@pytest.mark.parametrize("names", [CODES, [""] * len(NAMES), ["x" * 2000] * len(NAMES)])
def test_codes_change_nothing(names: list[str]) -> None:
    y, _, p, x = named_clusters(NAMES, 7)
    assert np.array_equal(label_quality(y, p, x, names=names), label_quality(y, p, x))


def test_the_order_of_the_classes_does_not_matter() -> None:
    y, _, p, x = named_clusters(NAMES, 7)
    new = np.random.default_rng(2).permutation(len(NAMES))
    moved, names = np.empty_like(p), np.empty(len(NAMES), object)
    moved[:, new], names[new] = p, NAMES
    expected = label_quality(y, p, x, names=NAMES)
    assert label_quality(new[y], moved, x, names=names.tolist()) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["Milk"], "names: 1 for 30 classes; give a list with one name for each class"),
        ("Milk", "names: 4 for 30 classes"),
        ([None] * 30, "names: not a text in 30 rows, first in row 0; give the name of each class as str"),
    ],
)
def test_names_have_to_be_one_text_for_each_class(names: list[str], message: str) -> None:
    y, _, p, x = named_clusters(NAMES, 0, each=2)
    with pytest.raises(CleaningError, match=message):
        label_quality(y, p, x, names=names)


def test_memory_grows_with_the_classes_and_not_with_their_square() -> None:
    num = 5000
    draw = np.random.default_rng(0)
    names = [" ".join(each) for each in draw.choice([f"{a}{b}" for a in KINDS for b in range(300)], (num, 4))]
    pairs = Pairs(draw.integers(0, num, (20_000, 4)).astype(np.int32), num)
    tracemalloc.start()
    name_prior(names, pairs, np.ones(num, np.bool_)).learn(1.0, np.ones(len(pairs)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6 < num * num * 4


@pytest.mark.parametrize("labels", [[-1, -1, -1], [0, -1, 0]])
def test_photos_without_a_label_and_classes_without_photos(labels: list[int]) -> None:
    p, x = np.full((3, 3), 1 / 3, np.float32), np.eye(3, dtype=np.float32)
    names = ["Oat Milk", "Milk", ""]
    assert suggest_labels(np.array(labels), p, x, names=names).tolist() == labels
    noise = estimate_noise(np.array(labels), p, x, names=names)
    assert np.isfinite(noise.share).all()
