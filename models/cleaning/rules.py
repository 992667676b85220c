"""Rules that judge labels, by name. Each gives a quality in [0, 1]; below 0.5 it calls the label wrong.

A rule sees `RuleInput` and nothing else, so all are compared on the same probabilities.
"""

from __future__ import annotations

from typing import Annotated, Protocol

import numpy as np
from numpy.typing import NDArray

from models.cleaning.noise import Noise, posterior
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
    """What a rule does."""

    def quality(self, evidence: RuleInput) -> NDArray[np.floating]:
        """(N,) in [0, 1]; of photos with the label -1 it does not matter."""


def sigmoid(x: NDArray[np.floating]) -> NDArray[np.floating]:
    """1 / (1 + exp(-x)) without overflow."""
    half: NDArray[np.floating] = 0.5 * (1 + np.tanh(0.5 * x))
    return half


@RULES.register("report", paper="arXiv:2106.10683")
class Report:
    """Disagrees and is unsure: another class is most probable, at less than `unsure`; the least probable first.

    The AliProducts report's rule taken literally. It was made for probabilities in sample; out of sample it is the weakest.
    """

    def __init__(self, unsure: Annotated[float, Range(0, 1, open_low=True)] = 0.7) -> None:
        self.unsure = unsure

    def quality(self, evidence: RuleInput) -> NDArray[np.floating]:
        return np.where(evidence.p_other > evidence.p_label, np.minimum(0.5 * evidence.p_other / self.unsure, 1), 1)


@RULES.register("self_confidence", paper="arXiv:1911.00068")
class SelfConfidence:
    """p(label) below `share` of what photos of that label have on average; p / (p + share * mean).

    cleanlab's self-confidence, with a threshold of the class's own, so that hard classes are not all suspect.
    """

    def __init__(self, share: Positive = 0.5) -> None:
        self.share = share

    def quality(self, evidence: RuleInput) -> NDArray[np.floating]:
        usual = self.share * class_means(evidence)[evidence.labels]
        return evidence.p_label / np.maximum(evidence.p_label + usual, TINY)


@RULES.register("log_margin", paper="arXiv:1911.00068")
class LogMargin:
    """log p(label) - log p(best other class) below `threshold`.

    `prior` takes that share of the logarithm of each class's size off both sides: half of it evens out what is lost of
    large and of small classes, and costs 3 to 4 points of F1 on data without a tail.
    """

    def __init__(self, threshold: float = -0.5, prior: Share = 0.0) -> None:
        self.threshold, self.prior = threshold, prior

    def quality(self, evidence: RuleInput) -> NDArray[np.floating]:
        if not self.prior:
            return sigmoid(log_margin(evidence.p_label, evidence.p_other) - self.threshold)
        size = np.maximum(evidence.counts, 1) ** self.prior
        p_other = np.zeros(len(evidence), np.float64)
        for rows, classes, probs in evidence.others():
            p_other[rows] = np.maximum(probs / (size if classes is None else size[classes]), 0).max(axis=1)
        return sigmoid(_log(evidence.p_label / size[evidence.labels]) - _log(p_other) - self.threshold)


@RULES.register("confident_learning", paper="arXiv:1911.00068")
class ConfidentLearning:
    """Another class is confidently predicted: at least as probable as it is on average for its own photos.

    The off-diagonal of the confident joint (Northcutt et al. 2021); where several classes are confident, the most probable.
    """

    def quality(self, evidence: RuleInput) -> NDArray[np.floating]:
        usual = class_means(evidence)
        usual[evidence.counts == 0] = np.inf  # a class that nobody bears is never confident
        best = np.zeros(len(evidence), np.float64)
        for rows, classes, probs in evidence.others():
            confident = probs >= (usual if classes is None else usual[classes])
            best[rows] = np.maximum(probs * confident, 0).max(axis=1)
        own = np.where(evidence.p_label >= usual[evidence.labels], evidence.p_label, 0)
        return 0.5 * evidence.p_label + np.where(best > own, 0, 0.5)


@RULES.register("neighbours", paper="Wilson 1972")
class Neighbours:
    """Of the `count` most similar other photos, more bear another class: log (1 + votes) against it below `threshold`."""

    def __init__(self, count: Number = 10, threshold: float = -0.5) -> None:
        self.count, self.threshold = count, threshold

    def quality(self, evidence: RuleInput) -> NDArray[np.floating]:
        near = nearest(evidence, self.count)
        own = count_votes(near, evidence.labels.astype(np.int32)[:, None])[:, 0]
        votes = count_votes(near, near)
        votes[near == evidence.labels[:, None]] = 0
        return sigmoid(np.log1p(own) - np.log1p(votes.max(axis=1)) - self.threshold)


@RULES.register("product", paper="")
class Product:
    """Probabilities times (1 + neighbours' votes), then the log margin below `threshold`."""

    def __init__(self, count: Number = 10, threshold: float = -0.5) -> None:
        self.count, self.threshold = count, threshold

    def quality(self, evidence: RuleInput) -> NDArray[np.floating]:
        found = evidence.candidates
        logs = _log(found.p) + np.log1p(count_votes(nearest(evidence, self.count), found.ids))
        return sigmoid(_margin(logs, found.exists) - self.threshold)


@RULES.register("linear", paper="Allen 1974")
class Linear:
    """A ridge classifier on the embeddings, fitted to all labels but the photo's own, answers another class by `gap` more."""

    def __init__(self, gap: Annotated[float, Range(0)] = 0.05, ridge: Positive = 0.5) -> None:
        self.gap, self.ridge = gap, ridge

    def quality(self, evidence: RuleInput) -> NDArray[np.floating]:
        found = evidence.candidates
        answers = _linear(evidence, self.ridge)
        return sigmoid(10 * (_margin(answers, found.exists) + self.gap))


@RULES.register("posterior", paper="")
class Posterior:
    """P(the label is right), from probabilities, neighbours, a linear vote, and the confusion that they reveal together.

    Evidence for a class: log p + log (1 + votes of `count` neighbours) + `linear` times the linear vote. It is weighed with how
    often that class bears that label (`models.cleaning.noise`), to the power `trust`. Without embeddings, p alone against a
    threshold (`log_margin`): lightly trained, it is too flat for a posterior.

    Beyond `most` photos in a group the neighbours, whose cost grows with the square, are left out.
    """

    def __init__(
        self,
        count: Number = 10,
        linear: Annotated[float, Range(0)] = 12.0,
        ridge: Positive = 0.5,
        trust: Share = 0.4,
        most: Annotated[int, Range(0)] = 50_000,
    ) -> None:
        self.count, self.linear, self.ridge, self.trust, self.most = count, linear, ridge, trust, most

    def quality(self, evidence: RuleInput) -> NDArray[np.floating]:
        if evidence.embeddings is None:
            return LogMargin().quality(evidence)
        quality = np.ones(len(evidence), np.float32)
        quality[evidence.judged] = self.believe(evidence)[0][:, 0]
        return quality

    def believe(self, evidence: RuleInput) -> tuple[NDArray[np.float32], Noise]:
        """(n, K + 1) probability of each candidate of the judged photos, and the confusion."""
        found, judged = evidence.candidates, evidence.judged
        logs = _log(found.p).astype(np.float32)
        if evidence.embeddings is not None:
            if np.unique(evidence.groups, return_counts=True)[1].max(initial=0) <= self.most:
                logs += np.log1p(count_votes(nearest(evidence, self.count), found.ids))
            logs += self.linear * _linear(evidence, self.ridge)
        logs[~found.exists] = -np.inf
        return posterior(logs[judged], found.ids[judged], num_classes=evidence.num_classes, trust=self.trust)


def photos(evidence: RuleInput) -> NDArray[np.floating]:
    """(N, d) embeddings.

    Raises:
        CleaningError: there are none.
    """
    if evidence.embeddings is None:
        raise CleaningError("embeddings: this rule asks similar photos; give embeddings, or take the rule log_margin")
    return evidence.embeddings


def class_means(evidence: RuleInput) -> NDArray[np.float64]:
    """(C,) mean p(label) of the photos that bear each label: the confident thresholds; 0 without photos."""
    judged = evidence.judged
    total = np.bincount(evidence.labels[judged], evidence.p_label[judged], minlength=evidence.num_classes)
    return np.asarray(total / np.maximum(evidence.counts, 1))


def nearest(evidence: RuleInput, count: int) -> NDArray[np.int32]:
    """(N, count) labels of the nearest other photos."""
    return neighbour_labels(photos(evidence), evidence.labels, neighbours=count, groups=evidence.groups)


def _linear(evidence: RuleInput, ridge: float) -> NDArray[np.float32]:
    return linear_vote(photos(evidence), evidence.labels, evidence.candidates.ids, groups=evidence.groups,
                       ridge=ridge, num_classes=evidence.num_classes)  # fmt: skip


def _log(p: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.log(np.maximum(p, TINY))


def _margin(logs: NDArray[np.floating], exists: NDArray[np.bool_]) -> NDArray[np.floating]:
    """(N,) column 0 less the largest other that exists; 0 where there is none."""
    other = np.where(exists[:, 1:], logs[:, 1:], -np.inf).max(axis=1)
    return np.where(np.isfinite(other), logs[:, 0] - other, 0)
