"""Registered rules that score labels. Each returns a label quality in [0, 1]; below 0.5 the label is a label issue.

A rule gets a `RuleInput` and nothing else, so that all rules can be compared on the same probabilities.
"""

from __future__ import annotations

from typing import Annotated, Protocol

import numpy as np
from numpy.typing import NDArray

from models.cleaning.evidence import gather_evidence
from models.cleaning.joined import Table
from models.cleaning.mixture import Estimate, f1_cut, posterior
from models.cleaning.rule_input import RuleInput
from models.cleaning.score import TINY, log_margin
from models.cleaning.votes import count_votes, linear_vote, neighbour_labels
from models.errors import CleaningError
from models.recipe.registry import Range, Registry

RULES = Registry("rule", table="clean")
DEFAULT = "posterior"
Share = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(0, open_low=True)]
Number = Annotated[int, Range(1, 1000)]


class Rule(Protocol):
    """Interface of a rule."""

    def quality(self, data: RuleInput) -> NDArray[np.floating]:
        """(N,) label quality in [0, 1]; any value for photos with the label -1."""


def sigmoid(x: NDArray[np.floating]) -> NDArray[np.floating]:
    """1 / (1 + exp(-x)) without overflow."""
    half: NDArray[np.floating] = 0.5 * (1 + np.tanh(0.5 * x))
    return half


@RULES.register("report", paper="arXiv:2106.10683")
class Report:
    """Another class is most probable, with less than `unsure`; the smaller its probability, the lower the quality.

    The rule of the AliProducts report ("disagrees and is unsure"), taken literally. It was designed for in-sample
    probabilities; on out-of-sample ones it is the weakest rule.
    """

    def __init__(self, unsure: Annotated[float, Range(0, 1, open_low=True)] = 0.7) -> None:
        self.unsure = unsure

    def quality(self, data: RuleInput) -> NDArray[np.floating]:
        return np.where(data.p_other > data.p_label, np.minimum(0.5 * data.p_other / self.unsure, 1), 1)


@RULES.register("self_confidence", paper="arXiv:1911.00068")
class SelfConfidence:
    """p(label) is below `share` times the mean p(label) of photos with this label; quality p / (p + share * mean).

    The self-confidence of cleanlab with a threshold per class, so that not all photos of a hard class are suspect.
    """

    def __init__(self, share: Positive = 0.5) -> None:
        self.share = share

    def quality(self, data: RuleInput) -> NDArray[np.floating]:
        usual = self.share * class_means(data)[data.labels]
        return data.p_label / np.maximum(data.p_label + usual, TINY)


@RULES.register("log_margin", paper="arXiv:1911.00068")
class LogMargin:
    """log p(label) - log p(best other class) is below `threshold`.

    `prior` subtracts this share of the log class size from both logarithms: 0.5 flags similar shares of large and small
    classes, but costs 3 to 4 points of F1 on data without a tail.
    """

    def __init__(self, threshold: float = -0.5, prior: Share = 0.0) -> None:
        self.threshold, self.prior = threshold, prior

    def quality(self, data: RuleInput) -> NDArray[np.floating]:
        if not self.prior:
            return sigmoid(log_margin(data.p_label, data.p_other) - self.threshold)
        size = np.maximum(data.counts, 1) ** self.prior
        p_other = np.zeros(len(data), np.float64)
        for rows, classes, probs in data.others():
            p_other[rows] = np.maximum(probs / (size if classes is None else size[classes]), 0).max(axis=1)
        return sigmoid(_log(data.p_label / size[data.labels]) - _log(p_other) - self.threshold)


@RULES.register("confident_learning", paper="arXiv:1911.00068")
class ConfidentLearning:
    """Another class is confidently predicted: its probability is at least its mean over the photos with that label.

    The off-diagonal of the confident joint (Northcutt et al. 2021). Of several confident classes the most probable
    counts.
    """

    def quality(self, data: RuleInput) -> NDArray[np.floating]:
        usual = class_means(data)
        usual[data.counts == 0] = np.inf  # a class without photos is never confident
        best = np.zeros(len(data), np.float64)
        for rows, classes, probs in data.others():
            confident = probs >= (usual if classes is None else usual[classes])
            best[rows] = np.maximum(probs * confident, 0).max(axis=1)
        own = np.where(data.p_label >= usual[data.labels], data.p_label, 0)
        return 0.5 * data.p_label + np.where(best > own, 0, 0.5)


@RULES.register("neighbours", paper="Wilson 1972")
class Neighbours:
    """Most similar other photos vote for another class: the difference of log (1 + votes) is below `threshold`.

    `count` photos vote, each for its own label.
    """

    def __init__(self, count: Number = 10, threshold: float = -0.5) -> None:
        self.count, self.threshold = count, threshold

    def quality(self, data: RuleInput) -> NDArray[np.floating]:
        near = nearest(data, self.count)
        own = count_votes(near, data.labels.astype(np.int32)[:, None])[:, 0]
        votes = count_votes(near, near)
        votes[near == data.labels[:, None]] = 0
        return sigmoid(np.log1p(own) - np.log1p(votes.max(axis=1)) - self.threshold)


@RULES.register("product", paper="")
class Product:
    """Log margin, of probabilities times (1 + votes of the neighbours), is below `threshold`."""

    def __init__(self, count: Number = 10, threshold: float = -0.5) -> None:
        self.count, self.threshold = count, threshold

    def quality(self, data: RuleInput) -> NDArray[np.floating]:
        found = data.candidates
        logs = _log(found.p) + np.log1p(count_votes(nearest(data, self.count), found.ids))
        return sigmoid(_margin(logs, found.exists) - self.threshold)


@RULES.register("linear", paper="Allen 1974")
class Linear:
    """Linear vote for another class exceeds that for the label by `gap`.

    The vote is that of a ridge classifier on the embeddings, fitted to all labels except the photo's own.
    """

    def __init__(self, gap: Annotated[float, Range(0)] = 0.05, ridge: Positive = 0.5) -> None:
        self.gap, self.ridge = gap, ridge

    def quality(self, data: RuleInput) -> NDArray[np.floating]:
        found = data.candidates
        answers = _linear(data, self.ridge)
        return sigmoid(10 * (_margin(answers, found.exists) + self.gap))


@RULES.register("posterior", paper="")
class Posterior:
    """P(the label is right) is below the cut with the highest expected F1, from all evidence, weighed as it proves itself.

    Evidence is log p, and for each encoder log (1 + votes of `count` neighbours) and the linear vote. Their weights, the
    label noise and the classes of the photos are estimated together (`models.cleaning.mixture`), so the share of label
    issues follows from the noise that the evidence shows. The quality is the probability, moved so that the cut is at 0.5.
    Without embeddings the rule is `log_margin`. Names of the classes, if there are any, say which confusions to expect.

    If a group has more than `most` photos, neighbours are looked for among photos of the label and of the ten most probable
    other classes, and among 2,000 others, because the cost of all pairs grows with the square.
    """

    def __init__(self, count: Number = 10, ridge: Positive = 0.5, most: Annotated[int, Range(0)] = 10_000) -> None:
        self.count, self.ridge, self.most = count, ridge, most

    def quality(self, data: RuleInput) -> NDArray[np.floating]:
        return self.quality_by(self.estimate(data), data) if data.embeddings else LogMargin().quality(data)

    def quality_by(self, estimate: Estimate, data: RuleInput) -> NDArray[np.float32]:
        """(N,) label quality that an estimate gives; 1 for photos with the label -1."""
        right = estimate.probs[:, 0]
        cut = f1_cut(1 - right)
        quality = np.ones(len(data), np.float32)
        quality[data.is_labelled] = right * cut / np.maximum(right * cut + (1 - right) * (1 - cut), TINY)
        return quality

    def estimate(self, data: RuleInput) -> Estimate:
        """Estimate of the n photos with a known class."""
        return posterior(gather_evidence(data, count=self.count, ridge=self.ridge, most=self.most))


def photos(data: RuleInput) -> Table:
    """(N, d) embeddings of the first encoder; raises CleaningError if there are none."""
    if not data.embeddings:
        raise CleaningError("embeddings: this rule compares photos; give embeddings, or use the rule log_margin")
    return data.embeddings[0]


def class_means(data: RuleInput) -> NDArray[np.float64]:
    """(C,) mean p(label) of the photos with each label, the thresholds of confident learning; 0 without photos."""
    labelled = data.is_labelled
    total = np.bincount(data.labels[labelled], data.p_label[labelled], minlength=data.num_classes)
    return np.asarray(total / np.maximum(data.counts, 1))


def nearest(data: RuleInput, count: int) -> NDArray[np.int32]:
    """(N, count) labels of the nearest other photos."""
    return neighbour_labels(photos(data), data.labels, neighbours=count, groups=data.groups)


def _linear(data: RuleInput, ridge: float) -> NDArray[np.float32]:
    return linear_vote(photos(data), data.labels, data.candidates.ids, groups=data.groups,
                       ridge=ridge, num_classes=data.num_classes)  # fmt: skip


def _log(p: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.log(np.maximum(p, TINY))


def _margin(logs: NDArray[np.floating], exists: NDArray[np.bool_]) -> NDArray[np.floating]:
    """(N,) column 0 minus the largest other candidate; 0 without another candidate."""
    other = np.where(exists[:, 1:], logs[:, 1:], -np.inf).max(axis=1)
    return np.where(np.isfinite(other), logs[:, 0] - other, 0)
