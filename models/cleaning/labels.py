"""The questions that people ask of labels: how good, which wrong, what instead, what is taken for what."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from models.cleaning.decide import worst
from models.cleaning.inputs import TopK
from models.cleaning.noise import Noise
from models.cleaning.rule_input import RuleInput, gather
from models.cleaning.rules import DEFAULT, RULES, Posterior, Rule
from models.errors import CleaningError

HALF = 0.5  # a rule calls labels below it wrong

Probs = NDArray[np.floating] | TopK
Embeddings = NDArray[np.floating] | None


def label_quality(
    labels: NDArray[np.integer],
    pred_probs: Probs,
    embeddings: Embeddings = None,
    *,
    rule: str = DEFAULT,
    groups: NDArray[np.integer] | None = None,
    **params: Any,
) -> NDArray[np.float32]:
    """(N,) how much each label is believed, in [0, 1]; below 0.5 the rule calls it wrong. 1 where nothing can be said.

    The probabilities have to come from networks that were not trained on the photo (`models.data.samplers.folds`), and
    lightly: in sample, a wrong label is memorised and looks right.

    Args:
        labels: (N,) classes from 0 to C - 1, as given; -1, a label that no class bears, is not judged.
        pred_probs: (N, C) rows that sum to 1, or `TopK`.
        embeddings: (N, d), any scale; what rules with votes ask.
        rule: a name of `RULES`.
        groups: (N,) of photos whose embeddings can be compared with each other, such as the folds; None: all can.
        params: of the rule.

    Raises:
        CleaningError: arrays that cannot be judged by.
        ConfigError: no such rule, or a parameter that it does not take.
    """
    built = cast(Rule, RULES.build(rule, **params))
    return _quality(built, gather(labels, pred_probs, embeddings, groups=groups))


def find_label_errors(
    labels: NDArray[np.integer],
    pred_probs: Probs,
    embeddings: Embeddings = None,
    *,
    rule: str = DEFAULT,
    groups: NDArray[np.integer] | None = None,
    floor_share: float = 0.3,
    floor_count: int = 5,
    budget: float = 1.0,
    **params: Any,
) -> NDArray[np.bool_]:
    """(N,) True where the rule calls the label wrong, the worst first, down to the floor of each class and within the budget.

    A class of n photos keeps at least min(n, max(floor_count, floor_share n)). Other arguments and errors: `label_quality`.

    Args:
        floor_share: in [0, 1].
        floor_count: photos, >= 1.
        budget: in [0, 1]; at most this share of all photos.
    """
    built = cast(Rule, RULES.build(rule, **params))
    evidence = gather(labels, pred_probs, embeddings, groups=groups)
    return worst(evidence.labels, _quality(built, evidence), threshold=HALF, floor_share=floor_share,
                 floor_count=floor_count, budget=budget)  # fmt: skip


def _quality(rule: Rule, evidence: RuleInput) -> NDArray[np.float32]:
    if evidence.num_classes == 1 or not evidence.judged.any():
        return np.ones(len(evidence), np.float32)  # there is no other class that it could be
    quality = np.clip(rule.quality(evidence), 0, 1).astype(np.float32)
    quality[~evidence.judged] = 1
    return quality


def suggest_labels(
    labels: NDArray[np.integer],
    pred_probs: Probs,
    embeddings: Embeddings = None,
    *,
    groups: NDArray[np.integer] | None = None,
    confidence: float = 0.9,
    **params: Any,
) -> NDArray[np.int64]:
    """(N,) the most probable class where it is not the label and at least `confidence` certain; else the label as it is.

    By the rule `posterior`, whose parameters it takes. Relabelling rarely paid where we measured it: show suggestions to people.

    Raises:
        CleaningError: as `label_quality`, or a confidence outside [0, 1].
    """
    if not 0 <= confidence <= 1:
        raise CleaningError(f"confidence: {confidence} is outside [0, 1]; it is a probability")
    evidence = gather(labels, pred_probs, embeddings, groups=groups)
    believed, _ = _posterior(params).believe(evidence)
    best = believed.argmax(axis=1)
    row, ids = np.arange(len(best)), evidence.candidates.ids[evidence.judged]
    suggested = evidence.labels.copy()
    suggested[evidence.judged] = np.where(believed[row, best] >= confidence, ids[row, best], ids[:, 0])
    return suggested


def estimate_noise(
    labels: NDArray[np.integer],
    pred_probs: Probs,
    embeddings: Embeddings = None,
    *,
    groups: NDArray[np.integer] | None = None,
    **params: Any,
) -> Noise:
    """Which classes are given for which, sparse; `Noise.matrix()` is dense, as forward correction takes it.

    By the rule `posterior`, whose parameters it takes, but for `trust`: it is 1 here. A smaller one finds errors better where
    they depend on the photo, and counts too many. Without embeddings the rate comes out low. Errors: as `label_quality`.
    """
    return _posterior({"trust": 1.0} | params).believe(gather(labels, pred_probs, embeddings, groups=groups))[1]


def _posterior(params: dict[str, Any]) -> Posterior:
    return cast(Posterior, RULES.build("posterior", **params))
