"""How much each member's answer counts, chosen on validation photos. Scores in, weights out; no torch.

uniform   all alike
greedy    forward selection with replacement (Caruana et al., ICML 2004): the member that helps most is added, again and again;
          how often it was added is its weight, and who was never added leaves the graph
weighted  weight is moved from member to member while that helps, in ever smaller steps

Better is a higher mean-class accuracy, then a smaller log loss. Weights that were chosen on a few photos flatter themselves there:
what they are worth is measured on fifths of the photos that had no part in choosing them, and unless that bound is above
zero all members count alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.data.samplers import folds
from models.evaluation.bootstrap import Gain, class_share, gain
from models.evaluation.scores import Scores

PICKS = 30  # of the greedy selection
STEPS = (0.2, 0.1, 0.05, 0.02)  # of weight that is moved
NUM_FOLDS = 5
LEAST = 1e-12  # probability, for its logarithm


@dataclass(frozen=True)
class WeightChoice:
    """What each member counts, with the sum 1; and what was considered instead of all alike, with its worth, if anything was."""

    weights: NDArray[np.float64]
    considered: NDArray[np.float64] | None = None
    gain: Gain | None = None

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        if self.considered is None or self.gain is None:
            return {"weights": self.weights.tolist()}
        evidence = {"considered": self.considered.tolist(), "gain": self.gain.to_dict()}
        return {"weights": self.weights.tolist()} | evidence


@dataclass(frozen=True)
class MemberScores:
    """M members about N photos, by the U classes that any of them kept for a photo.

    Attributes:
        classes: (N, U), rising; one may stand there twice.
        probs: (M, N, U) float32; 0 for what a member did not keep.
        p_label: (M, N) float32.
        target: (N,) classes of the labels.
    """

    classes: NDArray[np.int64]
    probs: NDArray[np.float32]
    p_label: NDArray[np.float32]
    target: NDArray[np.int64]

    def select(self, mask: NDArray[np.bool_]) -> MemberScores:
        """The photos of a mask."""
        return MemberScores(self.classes[mask], self.probs[:, mask], self.p_label[:, mask], self.target[mask])

    def hit(self, weights: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(N,) whether the weighted members recognise each photo."""
        best = np.tensordot(weights, self.probs, 1).argmax(1)
        first: NDArray[np.bool_] = np.take_along_axis(self.classes, best[:, None], 1)[:, 0] == self.target
        return first

    def quality(self, weights: NDArray[np.float64]) -> tuple[float, float]:
        """Mean-class accuracy, and the mean log probability of the labels, all classes alike; more is better."""
        share = class_share(self.target)
        log_p = np.log(np.maximum(weights @ self.p_label, LEAST))
        accuracy, likelihood = ((value * share).sum() / share.sum() for value in (self.hit(weights), log_p))
        return round(float(accuracy), 9), round(float(likelihood), 9)  # the order of a sum decides nothing


def gather(members: Sequence[Scores]) -> MemberScores:
    """The scores of members about the same photos, side by side."""
    classes = np.sort(np.concatenate([member.top for member in members], axis=1), axis=1)
    probs = np.stack([_probs_of(member, classes) for member in members])
    return MemberScores(classes, probs, np.stack([member.p_label for member in members]), members[0].target)


def _probs_of(member: Scores, classes: NDArray[np.int64]) -> NDArray[np.float32]:
    """(N, U) probability of each class; 0 for what was not kept."""
    order = np.argsort(member.top, axis=1)
    row = np.arange(len(member))[:, None] * (int(classes.max(initial=0)) + 1)
    kept = (np.take_along_axis(member.top, order, 1) + row).ravel()
    at = np.searchsorted(kept, classes + row).clip(max=max(len(kept) - 1, 0))
    probs: NDArray[np.float32] = np.take_along_axis(member.probs, order, 1).ravel()[at]
    return probs * (kept[at] == classes + row)


def choose_weights(members: Sequence[Scores], *, method: str, confidence: float) -> WeightChoice:
    """The weights of the members.

    Args:
        members: what each says of the validation photos, all of known classes; there may be none.
        method: "uniform", "weighted" or "greedy".
        confidence: as in models.evaluation.bootstrap.
    """
    even = np.full(len(members), 1 / len(members))
    if method == "uniform" or len(members) == 1 or not len(members[0]):
        return WeightChoice(even)
    answers = gather(members)
    after = np.empty(len(answers.target), np.bool_)
    fold = folds(answers.target, members[0].id.astype(object), num_folds=NUM_FOLDS)
    for number in range(NUM_FOLDS):
        judged = fold == number
        after[judged] = answers.select(judged).hit(search(answers.select(~judged), method=method))
    found = gain(answers.hit(even), after, answers.target, confidence=confidence)
    considered = search(answers, method=method)
    return WeightChoice(considered if found.stays else even, considered, found)


def search(answers: MemberScores, *, method: str) -> NDArray[np.float64]:
    """(M,) the best weights that a method finds; without photos all alike."""
    even = np.full(len(answers.probs), 1 / len(answers.probs))
    if not len(answers.target):
        return even
    return greedy(answers) if method == "greedy" else climb(answers, even)


def greedy(answers: MemberScores) -> NDArray[np.float64]:
    """(M,) the best of the forward selections of 1 to PICKS members; of equals the shortest."""
    picked, ways = np.zeros(len(answers.probs)), []
    for _ in range(PICKS):
        picked = max(picked + np.eye(len(picked)), key=lambda counts: answers.quality(counts / counts.sum()))
        ways.append(picked / picked.sum())
    return max(ways, key=answers.quality)


def climb(answers: MemberScores, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(M,) from where no move of weight from one member to another helps any more."""
    for step in STEPS:
        while answers.quality(best := max(moves(weights, step), key=answers.quality)) > answers.quality(weights):
            weights = best
    return weights


def moves(weights: NDArray[np.float64], step: float) -> list[NDArray[np.float64]]:
    """All ways to move `step` of weight, or all there is, from one member to another."""
    unit, members = np.eye(len(weights)), range(len(weights))
    ways = [min(step, weights[giver]) * (unit[taker] - unit[giver]) for giver in members for taker in members]
    return [(weights + way).round(9) for way in ways]  # what is left of a rounding error is no weight
