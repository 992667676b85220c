"""Synthetic label noise for tests and benchmarks: each function returns a noisy copy of true labels.

Exactly round(rate x samples) labels of every class are changed, drawn with a seed, so that a rate means the same on
small and large sets. The published experiments use seed 123 (code of Zhou et al., ICML 2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from models.errors import ConfigError

SEED = 123
CIFAR10_CONFUSIONS = {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"}

Labels = NDArray[np.int64]


def symmetric(label: Labels, *, rate: float, num_classes: int, seed: int = SEED) -> Labels:
    """Symmetric noise: a changed label becomes any other class with equal probability, rate / (C - 1) each.

    Args:
        label: (N,) in [0, num_classes).
        rate: share of wrong labels, in [0, 1].

    Raises:
        ConfigError: the rate is outside [0, 1], there are fewer than two classes, or a label is outside the classes.
    """
    _check(label, rate, num_classes)
    draw = _stream(seed)
    chosen = _choose(label, np.arange(num_classes), rate, draw)
    noisy = label.copy()
    noisy[chosen] = (label[chosen] + draw.randint(1, num_classes, size=len(chosen))) % num_classes
    return noisy


def pair(label: Labels, *, rate: float, num_classes: int, seed: int = SEED) -> Labels:
    """Pair noise: a changed label becomes the next class, the last class the first. Arguments as for `symmetric`."""
    _check(label, rate, num_classes)
    return _move(label, (np.arange(num_classes) + 1) % num_classes, rate, seed)


def asymmetric(
    label: Labels,
    *,
    rate: float,
    classes: Sequence[str],
    confusions: Mapping[str, str] = CIFAR10_CONFUSIONS,
    seed: int = SEED,
) -> Labels:
    """Asymmetric noise: a changed label becomes the class that its own is mistaken for; other classes stay clean.

    Args:
        label: (N,) in [0, len(classes)).
        rate: share of wrong labels in each confused class, in [0, 1]; the share in the whole set is smaller.
        classes: name of each class.
        confusions: class -> class that it is mistaken for; CIFAR-10's by default (Patrini et al., CVPR 2017, section
            5).

    Raises:
        ConfigError: as for `symmetric`, or a confused class is not among the classes.
    """
    _check(label, rate, len(classes))
    missing = sorted({*confusions, *confusions.values()} - set(classes))
    if missing:
        raise ConfigError(
            f"classes: asymmetric noise confuses {', '.join(missing)}, which the data do not have; "
            "give confusions between classes of the data, or use symmetric or pair noise"
        )
    becomes = np.arange(len(classes))
    for name, mistaken in confusions.items():
        becomes[classes.index(name)] = classes.index(mistaken)
    return _move(label, becomes, rate, seed)


def _move(label: Labels, becomes: Labels, rate: float, seed: int) -> Labels:
    confused = np.flatnonzero(becomes != np.arange(len(becomes)))
    chosen = _choose(label, confused, rate, _stream(seed))
    noisy = label.copy()
    noisy[chosen] = becomes[label[chosen]]
    return noisy


def _choose(label: Labels, classes: Labels, rate: float, draw: np.random.RandomState) -> Labels:
    """Positions of round(rate x n) random samples of each of the classes."""
    chosen, order = [np.empty(0, dtype=np.int64)], np.argsort(label, kind="stable")
    starts, stops = (np.searchsorted(label[order], classes, side=side) for side in ("left", "right"))
    for start, stop in zip(starts, stops, strict=True):
        of_class = order[start:stop]
        chosen.append(draw.permutation(of_class)[: int(rate * len(of_class) + 0.5)])
    return np.concatenate(chosen)


def _stream(seed: int) -> np.random.RandomState:
    """Generator whose stream numpy has frozen, so that a seed gives the same labels with every version of numpy."""
    return np.random.RandomState(seed)


def _check(label: Labels, rate: float, num_classes: int) -> None:
    if not 0 <= rate <= 1:
        raise ConfigError(f"rate: {rate!r} is outside [0, 1]; give the share of labels to change")
    if num_classes < 2:
        raise ConfigError(f"num_classes: {num_classes} leaves no wrong label to choose; give at least 2")
    if len(label) and not (label.min() >= 0 and label.max() < num_classes):
        wrong = label.min() if label.min() < 0 else label.max()
        raise ConfigError(f"label: {wrong} is outside [0, {num_classes}); correct it, or give the true num_classes")
