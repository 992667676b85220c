"""Label noise for tests and benchmarks: each function takes true labels and gives the labels as a careless annotator would.

Of every class exactly round(rate x its samples) labels are changed, drawn with a seed, so that a rate means the same on a
small set as on a large one. The sources inject with seed 123 (Zhou et al., ICML 2021, their code).
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
    """A changed label becomes any other class with equal probability, rate / (C - 1) each, never itself.

    Args:
        label: (N,) in [0, num_classes).
        rate: share of wrong labels, in [0, 1].

    Raises:
        ConfigError: a rate outside [0, 1], fewer than two classes, or a label outside the classes.
    """
    _check(label, rate, num_classes)
    draw = _stream(seed)
    chosen = _choose(label, np.arange(num_classes), rate, draw)
    noisy = label.copy()
    noisy[chosen] = (label[chosen] + draw.randint(1, num_classes, size=len(chosen))) % num_classes
    return noisy


def pair(label: Labels, *, rate: float, num_classes: int, seed: int = SEED) -> Labels:
    """A changed label becomes the next class, the last one the first. Arguments and errors as for symmetric."""
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
    """A changed label becomes the class that its own is mistaken for; classes without one keep theirs.

    Args:
        label: (N,) in [0, len(classes)).
        rate: share of wrong labels in each confused class, in [0, 1]; the share in the whole set is smaller.
        classes: name of each label.
        confusions: class -> what it is mistaken for; CIFAR-10's by default (Patrini et al., CVPR 2017, section 5).

    Raises:
        ConfigError: as for symmetric, or a confused class is not among the classes.
    """
    _check(label, rate, len(classes))
    missing = sorted({*confusions, *confusions.values()} - set(classes))
    if missing:
        raise ConfigError(
            f"classes: asymmetric noise confuses {', '.join(missing)}, which the data does not have; "
            "give confusions between its own classes, or use symmetric or pair noise"
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
    """Positions of round(rate x n) samples of each of the classes."""
    chosen = [np.empty(0, dtype=np.int64)]
    for k in classes:
        of_class = np.flatnonzero(label == k)
        chosen.append(draw.permutation(of_class)[: int(rate * len(of_class) + 0.5)])
    return np.concatenate(chosen)


def _stream(seed: int) -> np.random.RandomState:
    """The generator whose stream numpy has frozen: the same seed gives the same labels with every version of it."""
    return np.random.RandomState(seed)


def _check(label: Labels, rate: float, num_classes: int) -> None:
    if not 0 <= rate <= 1:
        raise ConfigError(f"rate: {rate!r} is outside [0, 1]; give the share of labels to be changed")
    if num_classes < 2:
        raise ConfigError(f"num_classes: {num_classes} leaves no wrong label to give; at least 2 are needed")
    if len(label) and not (label.min() >= 0 and label.max() < num_classes):
        wrong = label.min() if label.min() < 0 else label.max()
        raise ConfigError(f"label: {wrong} is outside [0, {num_classes}); correct it, or give the true num_classes")
