"""The class of each photo and the label noise, estimated together from evidence of unknown reliability.

Of each photo we see a label y and evidence x_j for some candidate classes j. The model, as a story:

1. the photo is of class j with probability q_j, proportional to exp(sum of weight * x_j);
2. with probability e_j the label is wrong; else it is j;
3. a wrong label is either a habit, drawn from T_j (class j is taken for a few others), or it comes from the
   photo: drawn from q, without j. The share `photo` of the wrong labels comes from the photo.

T_j is what was counted, smoothed by a prior that leans towards classes with names like that of j, as far as the counts
themselves do (`models.cleaning.tilt`).

All of it is fitted by expectation maximisation to the labels, which no photo's own evidence has seen. So the weights say
how far each kind of evidence can be trusted: confident and often contradicted evidence gets a small weight, and noise
none. The share of wrong labels is what remains unexplained where the evidence is strong.

Where the evidence is weak, wrong labels and hard photos look the same, and the fit prefers hard photos. That is right for
right labels and for errors by habit. If however the errors come from the photos, hard photos are where they are: the
evidence then counts `SHARPER` times as much, in the measure in which errors do come from the photos.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.cleaning.noise import SMOOTHING, Noise, Pairs
from models.cleaning.tilt import NamePrior, name_prior

STEPS, LAST_STEPS = 20, 8  # of expectation maximisation, with the weights and after they are fixed
BLOCK_ROWS = 1 << 14
SHARPER = 3.0  # chosen on drawn errors; 2 to 6 make little difference there
FEW_WRONG, SURE_RATE = 0.025, 0.05  # share of wrong labels up to which their kind is unknown, and until it is known
PRIOR = 4.0  # how firmly the weights are held at the start; a few photos must not set them
LEAST, MOST = 1e-4, 0.95  # of the share of wrong labels


def blocks(num: int) -> Iterator[slice]:
    """Rows to process at a time."""
    return (slice(start, start + BLOCK_ROWS) for start in range(0, num, BLOCK_ROWS))


@dataclass(frozen=True)
class Evidence:
    """Evidence for the classes of N photos, beside their labels.

    Attributes:
        kinds: (F, N, K + 1) float32 log evidence of each kind for each candidate, and for an average other class in the
            last column.
        ids: (N, K) candidate classes, the label in column 0; -1 for none.
        start: (F,) positive weights to start from.
        num_classes: C.
        present: number of classes that have photos.
        names: of the C classes; None: unknown.
        discount: (F,) factors of the learnt weights, below 1 for evidence whose errors are those of whole classes: the fit takes
            them for errors of single photos, of which there are more, and trusts such evidence too much.
    """

    kinds: NDArray[np.float32]
    ids: NDArray[np.int32]
    start: NDArray[np.float64]
    num_classes: int
    present: int
    names: Sequence[str] | None = None
    discount: NDArray[np.float64] | float = 1.0

    def __len__(self) -> int:
        return len(self.ids)

    def belief(self, weights: NDArray[np.float64], rows: slice) -> NDArray[np.float32]:
        """(n, K + 1) probability of each candidate without regard to the label; all other classes in the last column."""
        logits = np.einsum("f,fnk->nk", weights.astype(np.float32), self.kinds[:, rows])
        exists = self.ids[rows] >= 0
        logits[:, :-1][~exists] = -np.inf
        with np.errstate(divide="ignore"):
            logits[:, -1] += np.log(np.maximum(self.present - exists.sum(axis=1), 0), dtype=np.float32)
        logits -= logits.max(axis=1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= logits.sum(axis=1, keepdims=True)
        return logits


@dataclass(frozen=True)
class Fit:
    """Parameters of the model.

    Attributes:
        weights: (F,) of the kinds of evidence, >= 0.
        wrong: (C,) share of wrong labels among the photos of each class.
        photo: share of the wrong labels that come from the photo.
        habit: (E + 1,) T of each pair, 0 in the last place.
        count: (E + 1,) expected wrong labels by habit of each pair.
        size: (C,) the numbers by which counts become habits.
        rate: share of wrong labels.
        tilt: how far habits lean towards similar names, >= 0.
    """

    weights: NDArray[np.float64]
    wrong: NDArray[np.float64]
    photo: float
    habit: NDArray[np.float64]
    count: NDArray[np.float64]
    size: NDArray[np.float64]
    rate: float
    tilt: float


@dataclass(frozen=True)
class Explained:
    """Probabilities of the three stories of each photo of a block, given its label.

    Attributes:
        right: (n,) the label is right.
        habit: (n, K) wrong by habit, for each other candidate and, last, any other class.
        photo: (n, K) wrong because of the photo.
    """

    right: NDArray[np.floating]
    habit: NDArray[np.floating]
    photo: NDArray[np.floating]


@dataclass(frozen=True)
class Estimate:
    """Estimated classes of N photos.

    Attributes:
        ids: (N, K) candidate classes, the label in column 0; -1 for none.
        probs: (N, K) float32 probability of each. A row may sum to less than 1: the rest belongs to other classes.
        pairs: the pairs of another candidate and the label.
    """

    ids: NDArray[np.int32]
    probs: NDArray[np.float32]
    pairs: Pairs

    def noise(self, counted: NDArray[np.bool_] | None = None) -> Noise:
        """The label noise among the counted photos (N,), or among all, as these probabilities have it."""
        right, wrong = np.zeros(self.pairs.num_classes), np.zeros(len(self.pairs))
        for rows in blocks(len(self.ids)):
            probs = self.probs[rows] if counted is None else self.probs[rows] * counted[rows, None]
            right += np.bincount(self.ids[rows, 0], probs[:, 0], minlength=len(right))
            wrong += self.pairs.sums(rows, probs[:, 1:])
        return self.pairs.noise(right, wrong)


def posterior(evidence: Evidence) -> Estimate:
    """Estimate from all evidence and the labels. Time O(N K F) for each of 28 steps."""
    pairs, fit = fitted(evidence)
    return Estimate(evidence.ids, _conclude(evidence, pairs, fit), pairs)


def fitted(evidence: Evidence) -> tuple[Pairs, Fit]:
    """The parameters after all steps, and the pairs that they are about."""
    pairs = Pairs(evidence.ids, evidence.num_classes)
    present = np.bincount(evidence.ids[:, 0], minlength=evidence.num_classes) > 0
    prior = name_prior(evidence.names, pairs, present)
    fit = _first(evidence, prior)
    for _ in range(STEPS):
        fit = _step(evidence, prior, fit, learn=True)
    known = float(np.clip((fit.rate - FEW_WRONG) / SURE_RATE, 0, 1))
    fit = replace(fit, weights=fit.weights * evidence.discount * (1 + SHARPER * fit.photo * known))
    for _ in range(LAST_STEPS):
        fit = _step(evidence, prior, fit, learn=False)
    return pairs, fit


def f1_cut(wrong: NDArray[np.floating], *, least: float = 1 / 3) -> float:
    """The probability of being wrong from which labels should be flagged for the highest F1 that they let expect.

    That is half the highest F1 (Lipton et al. 2014): 1/2 if all is certain, less if little can be told. Never below
    `least`, so that right labels are not flagged for lack of wrong ones.

    Args:
        wrong: (N,) calibrated probabilities that a label is wrong.
    """
    falling = np.sort(wrong.astype(np.float64))[::-1]
    found = np.cumsum(falling)
    if not len(falling) or found[-1] == 0:
        return 0.5
    return float(np.clip((found / (np.arange(1, len(falling) + 1) + found[-1])).max(), least, 0.5))


def _first(evidence: Evidence, prior: NamePrior) -> Fit:
    """A fifth of the labels wrong, evenly, a third of them because of the photo."""
    habit = np.append(prior.shares(0), 0)
    wrong, size = np.full(evidence.num_classes, 0.2), np.ones(evidence.num_classes)
    return Fit(evidence.start, wrong, 0.3, habit, np.zeros(len(habit)), size, 0.2, 0.0)


def _explain(evidence: Evidence, pairs: Pairs, fit: Fit, rows: slice, belief: NDArray[np.float32],
             habit: NDArray[np.floating]) -> Explained:  # fmt: skip
    """habit: (n, K - 1) T of the label for each other candidate."""
    ids = evidence.ids[rows]
    right = belief[:, 0] * (1 - fit.wrong[ids[:, 0]])
    error = belief[:, 1:] * np.append(fit.wrong[ids[:, 1:]], np.full((len(ids), 1), fit.rate), axis=1)
    by_habit = (1 - fit.photo) * error
    by_habit[:, :-1] *= habit
    by_habit[:, -1] /= max(1, evidence.present - 1)
    by_photo = fit.photo * error * (belief[:, :1] / np.maximum(1 - belief[:, 1:], 1e-9))
    total = np.maximum(right + by_habit.sum(axis=1) + by_photo.sum(axis=1), 1e-300)
    return Explained(right / total, by_habit / total[:, None], by_photo / total[:, None])


def _step(evidence: Evidence, prior: NamePrior, fit: Fit, *, learn: bool) -> Fit:
    """One step of expectation maximisation, with one Newton step for the weights and one for the tilt."""
    num_kinds, pairs = len(evidence.kinds), prior.pairs
    count, photos = np.zeros(len(pairs)), 0.0
    right, erring = np.zeros(evidence.num_classes), np.zeros(len(pairs))
    total_wrong, slope, curve = 0.0, np.zeros(num_kinds), np.zeros((num_kinds, num_kinds))
    for rows in blocks(len(evidence)):
        belief = evidence.belief(fit.weights, rows)
        seen = _explain(evidence, pairs, fit, rows, belief, fit.habit[pairs.index[rows]])
        wrong = seen.habit + seen.photo
        count += pairs.sums(rows, seen.habit[:, :-1])
        erring += pairs.sums(rows, wrong[:, :-1])
        right += np.bincount(evidence.ids[rows, 0], seen.right, minlength=evidence.num_classes)
        photos, total_wrong = photos + float(seen.photo.sum()), total_wrong + float(wrong.sum())
        if learn:
            kinds = evidence.kinds[:, rows]
            found = np.concatenate([seen.right[:, None], wrong], axis=1)
            slope += np.einsum("nk,fnk->f", found - belief, kinds)
            apart = kinds - np.einsum("nk,fnk->fn", belief, kinds)[:, :, None]
            curve += np.einsum("fnk,gnk->fg", belief * apart, apart)
    rate = float(np.clip(total_wrong / max(1, len(evidence)), LEAST, MOST))
    smoothing = SMOOTHING * max(rate, 0.01)
    size, of_class = pairs.of_true(count) + smoothing, pairs.of_true(erring)
    tilt = prior.learn(fit.tilt, count) if learn else fit.tilt
    return Fit(
        weights=_newton(fit.weights, evidence.start, slope, curve) if learn else fit.weights,
        wrong=np.clip((of_class + SMOOTHING * rate) / (right + of_class + SMOOTHING), LEAST, MOST),
        photo=photos / max(1e-9, total_wrong),
        habit=np.append((count + smoothing * prior.shares(tilt)) / size[pairs.true], 0),
        count=np.append(count, 0),
        size=size,
        rate=rate,
        tilt=tilt,
    )


def _newton(weights: NDArray[np.float64], start: NDArray[np.float64], slope: NDArray[np.float64],
            curve: NDArray[np.float64]) -> NDArray[np.float64]:  # fmt: skip
    """Weights after a step of at most half the start, never negative, and held at the start by a Gaussian prior."""
    slope = slope - PRIOR * (weights / start - 1) / start
    move = np.linalg.solve(curve + PRIOR * np.diag(1 / start**2), slope)
    return np.maximum(weights + np.clip(move, -start / 2, start / 2), 0)


def _conclude(evidence: Evidence, pairs: Pairs, fit: Fit) -> NDArray[np.float32]:
    """(N, K) probabilities in which no photo confirms the habit that condemns it: its own part is taken out of T."""
    probs = np.empty(evidence.ids.shape, np.float32)
    size = np.append(fit.size[pairs.true], 1)
    for rows in blocks(len(evidence)):
        belief, index = evidence.belief(fit.weights, rows), pairs.index[rows]
        own = _explain(evidence, pairs, fit, rows, belief, fit.habit[index]).habit[:, :-1]
        habit = np.maximum(fit.habit[index] - np.minimum(own, fit.count[index]) / size[index], 0)
        seen = _explain(evidence, pairs, fit, rows, belief, habit)
        probs[rows, 0] = seen.right
        probs[rows, 1:] = (seen.habit + seen.photo)[:, :-1]
    return probs
