"""Label noise: exact rates, no label changed to itself, the same labels for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.noise import CIFAR10_CONFUSIONS, asymmetric, pair, symmetric
from models.errors import ConfigError

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
GOLDEN = [
    4,
    0,
    0,
    1,
    6,
    1,
    2,
    3,
    2,
    4,
    3,
    3,
    9,
    4,
    4,
    5,
    5,
    7,
    6,
    6,
    4,
    7,
    7,
    1,
    8,
    8,
    1,
    9,
    4,
    9,
]  # seed 123, rate .34
LABELS = st.lists(st.integers(0, 4), max_size=60).map(lambda labels: np.array(labels, dtype=np.int64))
RATES = st.floats(0, 1)


def changed_of_each(label: np.ndarray, noisy: np.ndarray, num_classes: int) -> list[int]:
    return np.bincount(label[label != noisy], minlength=num_classes).tolist()


@given(LABELS, RATES, st.integers(0, 2**32 - 1))
def test_symmetric_noise_changes_its_share_of_every_class(label: np.ndarray, rate: float, seed: int) -> None:
    noisy = symmetric(label, rate=rate, num_classes=5, seed=seed)

    counts = np.bincount(label, minlength=5)
    assert changed_of_each(label, noisy, 5) == [int(rate * n + 0.5) for n in counts]
    assert set(noisy.tolist()) <= set(range(5))


@given(LABELS, RATES)
def test_pair_noise_gives_the_next_class(label: np.ndarray, rate: float) -> None:
    noisy = pair(label, rate=rate, num_classes=5)

    moved = label != noisy
    assert ((label[moved] + 1) % 5 == noisy[moved]).all()
    assert moved.sum() == sum(int(rate * n + 0.5) for n in np.bincount(label, minlength=5))


def test_symmetric_noise_is_spread_evenly_over_the_other_classes() -> None:
    label = np.zeros(100_000, dtype=np.int64)

    noisy = symmetric(label, rate=0.4, num_classes=10)

    counts = np.bincount(noisy, minlength=10)
    assert counts[0] == 60_000
    assert counts[1:].min() > 40_000 / 9 - 300  # more than four deviations
    assert counts[1:].max() < 40_000 / 9 + 300


def test_asymmetric_noise_confuses_what_cifar10_confuses() -> None:
    label = np.arange(10).repeat(100)

    noisy = asymmetric(label, rate=0.3, classes=CIFAR10)

    flips = {(CIFAR10[a], CIFAR10[b]) for a, b in zip(label, noisy, strict=True) if a != b}
    assert flips == set(CIFAR10_CONFUSIONS.items())
    assert changed_of_each(label, noisy, 10) == [0, 0, 30, 30, 30, 30, 0, 0, 0, 30]


def test_a_seed_gives_the_same_labels_on_every_machine() -> None:
    label = np.arange(10).repeat(3)

    noisy = symmetric(label, rate=0.34, num_classes=10)

    assert noisy.tolist() == GOLDEN
    assert not np.array_equal(noisy, symmetric(label, rate=0.34, num_classes=10, seed=124))


def test_the_given_labels_stay_as_they_are() -> None:
    label = np.arange(10)

    symmetric(label, rate=1.0, num_classes=10)
    pair(label, rate=1.0, num_classes=10)

    assert label.tolist() == list(range(10))


@pytest.mark.parametrize(
    ("label", "rate", "num_classes", "message"),
    [
        ([0, 1], 1.2, 2, r"rate: 1.2 is outside \[0, 1\]"),
        ([0, 1], float("nan"), 2, "rate: nan"),
        ([0], 0.1, 1, "num_classes: 1"),
        ([0, 2], 0.1, 2, r"label: 2 is outside \[0, 2\)"),
        ([-1, 1], 0.1, 2, "label: -1"),
    ],
)
def test_impossible_noise_is_refused(label: list[int], rate: float, num_classes: int, message: str) -> None:
    for noise in (symmetric, pair):
        with pytest.raises(ConfigError, match=message):
            noise(np.array(label), rate=rate, num_classes=num_classes)


def test_asymmetric_noise_names_the_classes_it_misses() -> None:
    with pytest.raises(ConfigError, match="confuses airplane, automobile, bird, cat, deer, horse, which"):
        asymmetric(np.array([0, 1]), rate=0.2, classes=("dog", "truck"))
