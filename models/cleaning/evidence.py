"""Evidence for the classes of photos: probabilities of the folds, and of each encoder its neighbours and its linear vote.

An encoder of images and texts also has the vote of names, if the user gives their vectors.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.cleaning.joined import Table
from models.cleaning.mixture import Evidence
from models.cleaning.name_votes import name_vote
from models.cleaning.rule_input import RuleInput
from models.cleaning.votes import candidate_votes, count_votes, linear_vote, neighbour_labels

COMPARED = 10  # most probable other classes whose photos are compared where not all are
LEAST = 1e-6  # probabilities below tell no more
LINEAR = 12.0  # weight of a linear vote to start from; it reaches from 0 to 1, the other kinds over several units
SHARED = 0.5  # of the learnt weight of names, as all photos of a class share the error of its vector; chosen on drawn clusters


def gather_evidence(data: RuleInput, *, count: int, ridge: float, most: int) -> Evidence:
    """Evidence for the photos with a known class.

    Args:
        count: neighbours that vote.
        ridge: of the linear vote.
        most: photos in a group beyond which neighbours are looked for among those of candidate classes and some others, as
            the cost of all pairs grows with the square.
    """
    found, labelled = data.candidates, data.is_labelled
    kinds, start = [_with_others(data, np.log(np.maximum(found.p, LEAST)), _log_other(data, found.p))], [1.0]
    small = np.unique(data.groups, return_counts=True)[1].max(initial=0) <= most
    for embeddings in data.embeddings:
        votes = _votes(data, embeddings, count=count, all_pairs=small)
        kinds.append(_with_others(data, np.log1p(votes), np.log1p(_average(data, count - votes.sum(axis=1)))))
        start.append(1 / len(data.embeddings))
        votes = linear_vote(embeddings, data.labels, found.ids, groups=data.groups, ridge=ridge,
                            num_classes=data.num_classes)  # fmt: skip
        kinds.append(_with_others(data, votes, _average(data, 1 - votes.sum(axis=1))))
        start.append(LINEAR / len(data.embeddings))
    for embeddings, vectors in data.named:
        votes = name_vote(embeddings, vectors, found.ids, data.counts > 0)
        kinds.append(_with_others(data, votes[:, :-1], votes[:, -1]))
        start.append(1 / len(data.named))
    discount = np.repeat([1.0, SHARED], [len(kinds) - len(data.named), len(data.named)])
    return Evidence(
        np.stack(kinds), found.ids[labelled], np.array(start), data.num_classes, data.present, data.names, discount
    )


def _votes(data: RuleInput, embeddings: Table, *, count: int, all_pairs: bool) -> NDArray[np.float32]:
    """(N, K) votes of the `count` nearest photos for each candidate."""
    ids = data.candidates.ids
    if all_pairs:
        return count_votes(neighbour_labels(embeddings, data.labels, neighbours=count, groups=data.groups), ids)
    compared = data.best(COMPARED).ids
    return candidate_votes(embeddings, data.labels, compared, neighbours=count, groups=data.groups)[:, : ids.shape[1]]


def _with_others(data: RuleInput, candidates: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.float32]:
    """(n, K + 1) evidence for each candidate and, last, an average other class, of the photos with a known class."""
    labelled = data.is_labelled
    both = np.empty((int(labelled.sum()), candidates.shape[1] + 1), np.float32)
    both[:, :-1], both[:, -1] = candidates[labelled], other[labelled]
    return both


def _average(data: RuleInput, left: NDArray[np.floating]) -> NDArray[np.floating]:
    """(N,) shares of all other classes in the part that the candidates leave; not negative."""
    others = data.present - data.candidates.exists.sum(axis=1)
    return np.asarray(np.maximum(left, 0) / np.maximum(others, 1))


def _log_other(data: RuleInput, p: NDArray[np.float32]) -> NDArray[np.floating]:
    return np.asarray(np.log(np.maximum(_average(data, np.maximum(1 - p.sum(axis=1), LEAST)), 1e-9)))
