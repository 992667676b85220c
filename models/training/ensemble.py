"""Weights of the ensemble's members, chosen on the selection photos. Works on scores, without torch.

uniform   equal weights
greedy    forward selection with replacement (Caruana et al., ICML 2004): the most helpful member is added repeatedly; its
          weight is the number of times it was added, and a member that was never added is left out of the graph
weighted  coordinate search: weight is moved between members while that helps, in ever smaller steps

Weights are better if their mean-class accuracy is higher, then if their log loss is smaller. Accuracy on the photos
that chose the weights would be optimistic, so their gain is measured by 5-fold cross-validation. Unless its lower
bootstrap bound is above zero, all members get the same weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.data.samplers import folds
from models.evaluation.bootstrap import Gain, class_share, gain
from models.evaluation.scores import Scores

PICKS = 30  # members that the greedy selection adds
STEPS = (0.2, 0.1, 0.05, 0.02)  # amounts of weight to move
NUM_FOLDS = 5
MIN_PROBABILITY = 1e-12  # floor before taking the logarithm


@dataclass(frozen=True)
class WeightChoice:
    """Weights of the members, with sum 1; and the considered alternative to equal weights, if any, with its gain."""

    weights: NDArray[np.float64]
    considered: NDArray[np.float64] | None = None
    gain: Gain | None = None

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        if self.considered is None or self.gain is None:
            return {"weights": self.weights.tolist()}
        evidence = {"considered": self.considered.tolist(), "gain": self.gain.to_dict()}
        return {"weights": self.weights.tolist()} | evidence


@dataclass(frozen=True)
class MemberScores:
    """Scores of M members for N photos, over the U classes that any member kept for a photo.

    Attributes:
        classes: (N, U) in ascending order; a class may occur twice.
        probs: (M, N, U) float32 probabilities; 0 for a class that a member did not keep.
        p_label: (M, N) float32 probabilities of the labels.
        target: (N,) classes of the labels.
    """

    classes: NDArray[np.int64]
    probs: NDArray[np.float32]
    p_label: NDArray[np.float32]
    target: NDArray[np.int64]

    def select(self, mask: NDArray[np.bool_]) -> MemberScores:
        """Scores of the photos in a mask (N,)."""
        return MemberScores(self.classes[mask], self.probs[:, mask], self.p_label[:, mask], self.target[mask])

    def hit(self, weights: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(N,) True for each photo that the weighted members recognise."""
        best = np.tensordot(weights, self.probs, 1).argmax(1)
        first: NDArray[np.bool_] = np.take_along_axis(self.classes, best[:, None], 1)[:, 0] == self.target
        return first

    def quality(self, weights: NDArray[np.float64]) -> tuple[float, float]:
        """Mean-class accuracy and mean log probability of the labels, with equal weight per class; higher is better."""
        share = class_share(self.target)
        log_p = np.log(np.maximum(weights @ self.p_label, MIN_PROBABILITY))
        accuracy, likelihood = ((value * share).sum() / share.sum() for value in (self.hit(weights), log_p))
        return round(float(accuracy), 9), round(float(likelihood), 9)  # rounded: the order of summation must not matter


def gather(members: Sequence[Scores]) -> MemberScores:
    """Scores of all members for the same photos, aligned by class."""
    classes = np.sort(np.concatenate([member.top for member in members], axis=1), axis=1)
    probs = np.stack([_probs_of(member, classes) for member in members])
    return MemberScores(classes, probs, np.stack([member.p_label for member in members]), members[0].target)


def _probs_of(member: Scores, classes: NDArray[np.int64]) -> NDArray[np.float32]:
    """(N, U) probability of each class; 0 for a class that the member did not keep."""
    order = np.argsort(member.top, axis=1)
    row = np.arange(len(member))[:, None] * (int(classes.max(initial=0)) + 1)  # makes keys (row, class) ascend
    kept = (np.take_along_axis(member.top, order, 1) + row).ravel()
    position = np.searchsorted(kept, classes + row).clip(max=max(len(kept) - 1, 0))
    probs: NDArray[np.float32] = np.take_along_axis(member.probs, order, 1).ravel()[position]
    return probs * (kept[position] == classes + row)


def choose_weights(members: Sequence[Scores], *, method: str, confidence: float) -> WeightChoice:
    """Weights of the members, chosen by a method and kept only if their gain is proven.

    Args:
        members: scores of each member on the selection photos, all of known classes; there may be no photos.
        method: "uniform", "weighted" or "greedy".
        confidence: as in models.evaluation.bootstrap.
    """
    equal = np.full(len(members), 1 / len(members))
    if method == "uniform" or len(members) == 1 or not len(members[0]):
        return WeightChoice(equal)
    scores = gather(members)
    after = np.empty(len(scores.target), np.bool_)
    fold = folds(scores.target, members[0].id, num_folds=NUM_FOLDS)
    for number in range(NUM_FOLDS):
        held_out = fold == number
        after[held_out] = scores.select(held_out).hit(search(scores.select(~held_out), method=method))
    gained = gain(scores.hit(equal), after, scores.target, confidence=confidence)
    considered = search(scores, method=method)
    return WeightChoice(considered if gained.stays else equal, considered, gained)


def search(scores: MemberScores, *, method: str) -> NDArray[np.float64]:
    """(M,) the best weights that a method finds; equal weights without photos."""
    equal = np.full(len(scores.probs), 1 / len(scores.probs))
    if not len(scores.target):
        return equal
    return greedy(scores) if method == "greedy" else climb(scores, equal)


def greedy(scores: MemberScores) -> NDArray[np.float64]:
    """(M,) the best of the forward selections of 1 to PICKS members; the shortest of equally good ones."""
    counts = np.zeros(len(scores.probs))
    selections = []
    for _ in range(PICKS):
        one_more = counts + np.eye(len(counts))
        counts = max(one_more, key=lambda each: scores.quality(each / each.sum()))
        selections.append(counts / counts.sum())
    return max(selections, key=scores.quality)


def climb(scores: MemberScores, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(M,) weights after hill climbing from `weights`, until no move from one member to another helps."""
    for step in STEPS:
        while True:
            best = max(moves(weights, step), key=scores.quality)
            if scores.quality(best) <= scores.quality(weights):
                break
            weights = best
    return weights


def moves(weights: NDArray[np.float64], step: float) -> list[NDArray[np.float64]]:
    """Weights (M,) after every move of `step` of weight, or of all that is left, from one member to another."""
    unit = np.eye(len(weights))
    moved = []
    for giver in range(len(weights)):
        for taker in range(len(weights)):
            amount = min(step, weights[giver])
            moved.append((weights + amount * (unit[taker] - unit[giver])).round(9))  # rounded: no residues near 0
    return moved
