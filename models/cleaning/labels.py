"""Label quality, label issues, suggested labels and label noise: the public functions of cleaning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from models.cleaning.assessment import Assessment
from models.cleaning.decide import worst
from models.cleaning.inputs import TopK
from models.cleaning.noise import Noise
from models.cleaning.rule_input import Embeddings, NameVectors, gather
from models.cleaning.rules import DEFAULT, RULES, Rule

HALF = 0.5  # a label of lower quality is a label issue
POSTERIOR = "posterior"  # the rule that estimates classes and noise

Probs = NDArray[np.floating] | TopK


def assess(
    labels: NDArray[np.integer],
    pred_probs: Probs,
    embeddings: Embeddings = None,
    *,
    rule: str = DEFAULT,
    groups: NDArray[np.integer] | None = None,
    names: Sequence[str] | None = None,
    name_vectors: NameVectors = None,
    **params: Any,
) -> Assessment:
    """Assessment of labels, from which several results come at the cost of one; each function below returns one of them.

    The probabilities have to be out-of-sample (`models.data.samplers.folds`), from lightly trained networks: in sample,
    a wrong label is memorised and looks right.

    Args:
        labels: (N,) given labels, 0 to C - 1; -1, a label without a class, is not scored.
        pred_probs: (N, C) rows that sum to 1, or `TopK`.
        embeddings: (N, d), any scale, or a list of them, one for each encoder; needed by rules that compare photos, of
            which only `posterior` uses more than the first.
        rule: a name of `RULES`.
        groups: (N,) group of each photo, such as its fold; only embeddings of one group are compared. None: one group.
        names: of the C classes, such as the products' titles; `posterior` learns whether similar ones are confused more
            often. None: names are not compared.
        name_vectors: (C, d) vectors of the names by the text tower of the (first) encoder, or a list of one for each encoder,
            None where there is none; a row of zeros for a name without a vector. `posterior` learns what they are worth.
        params: parameters of the rule.

    Raises:
        CleaningError: arrays of a wrong shape, type or range.
        ConfigError: an unknown rule or parameter, or a value out of range.
    """
    built = cast(Rule, RULES.build(rule, **params))
    data = gather(labels, pred_probs, embeddings, groups=groups, names=names, name_vectors=name_vectors)
    return Assessment(data, built)


def label_quality(
    labels: NDArray[np.integer], pred_probs: Probs, embeddings: Embeddings = None, **arguments: Any
) -> NDArray[np.float32]:
    """(N,) label quality in [0, 1]; below 0.5 the label is a label issue. 1 for labels that cannot be scored.

    Arguments and errors as for `assess`.
    """
    return assess(labels, pred_probs, embeddings, **arguments).quality


def find_label_errors(
    labels: NDArray[np.integer],
    pred_probs: Probs,
    embeddings: Embeddings = None,
    *,
    floor_share: float = 0.3,
    floor_count: int = 5,
    budget: float = 1.0,
    **arguments: Any,
) -> NDArray[np.bool_]:
    """(N,) bool: True for a label issue; lowest qualities first, down to the floor of each class, within the budget.

    A class of n photos keeps at least min(n, max(floor_count, floor_share n)). Other arguments and errors as for `assess`.
    Only benchmarks and notebooks call this function.

    Args:
        floor_share: share of a class that is always kept, in [0, 1].
        floor_count: photos of a class that are always kept, >= 1.
        budget: largest share of all photos that become label issues, in [0, 1].
    """
    found = assess(labels, pred_probs, embeddings, **arguments)
    return worst(found.data.labels, found.quality, threshold=HALF, floor_share=floor_share,
                 floor_count=floor_count, budget=budget)  # fmt: skip


def suggest_labels(
    labels: NDArray[np.integer],
    pred_probs: Probs,
    embeddings: Embeddings = None,
    *,
    confidence: float = 0.9,
    **arguments: Any,
) -> NDArray[np.int64]:
    """(N,) the most probable class if its probability is at least `confidence`, otherwise the label.

    The rule is always `posterior`; other arguments as for `assess`. Relabelling rarely helped where we measured it; show the
    suggestions to people instead.

    Raises:
        CleaningError: as for `assess`, or a confidence outside [0, 1].
    """
    return assess(labels, pred_probs, embeddings, rule=POSTERIOR, **arguments).suggested(confidence)


def estimate_noise(
    labels: NDArray[np.integer], pred_probs: Probs, embeddings: Embeddings = None, **arguments: Any
) -> Noise:
    """Estimated label noise, as a sparse confusion of classes.

    The rule is always `posterior`; other arguments and errors as for `assess`. Errors that hit hard photos above all are
    underestimated, since hard photos with right labels look the same. Without embeddings the rate is underestimated.
    """
    return assess(labels, pred_probs, embeddings, rule=POSTERIOR, **arguments).noise()
