"""Votes of names: which candidate's name a photo is like, to an encoder of images and texts such as CLIP or SigLIP.

The image tower gave the features of the photo, the text tower the vector of each name; both lie in one space.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.cleaning.joined import Table
from models.cleaning.votes import BLOCK_BYTES, in_parts

SAMPLE = 512  # classes that stand for all others, where there are more
MOST = 60.0  # of a vote, so that its exponential is finite


def name_vote(
    embeddings: Table, vectors: NDArray[np.floating], ids: NDArray[np.int32], present: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """(N, K + 1) cosine of each photo and the name of each candidate class, in units of its spread, and that of the others.

    Two means are taken off. One is that of the photo over all names: what remains tells classes apart, and a class without a
    vector stands at 0, where it speaks neither for nor against itself. The other is that of the name over all photos, because
    some names are like any photo. The last column is log mean exp over the other classes: one of them may be the class of
    the photo, which their mean would hide. Time O(N (K + 512) d), memory O(C d).

    Args:
        embeddings: (N, d) features of the photos.
        vectors: (C, d) of the names, of any length; a row of zeros for a name without one.
        ids: (N, K) candidate classes; the vote for -1 is 0.
        present: (C,) classes that have photos.
    """
    apart = _apart(vectors)
    votes, usual = _votes(embeddings, apart, ids)
    voting = (ids >= 0) & np.asarray(vectors.any(axis=1))[ids]
    votes[~voting] = 0
    spread = _spread(votes, voting)
    found = np.zeros((len(ids), ids.shape[1] + 1), np.float32)
    if spread > 0:
        found[:, :-1] = votes / spread
        found[:, -1] = _others(embeddings, apart / spread, usual / spread, ids, found[:, :-1], present)
    return found


def _votes(
    embeddings: Table, apart: NDArray[np.float32], ids: NDArray[np.int32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(N, K) votes, and (C,) the mean over all photos that was taken off."""
    votes, total = np.zeros(ids.shape, np.float32), np.zeros(apart.shape[1])
    for part in in_parts(np.arange(len(ids)), BLOCK_BYTES // (4 * ids.shape[1] * apart.shape[1])):
        unit = _unit(np.array(embeddings[part], np.float32))
        total += unit.sum(axis=0, dtype=np.float64)
        votes[part] = np.einsum("ikj,ij->ik", apart[ids[part]], unit)
    usual: NDArray[np.float32] = apart @ (total / max(1, len(ids))).astype(np.float32)
    return votes - usual[ids], usual


def _others(
    embeddings: Table, apart: NDArray[np.float32], usual: NDArray[np.float32], ids: NDArray[np.int32],
    votes: NDArray[np.float32], present: NDArray[np.bool_],
) -> NDArray[np.float32]:  # fmt: skip
    """(N,) log mean exp of the votes for all other classes, or for a sample of them; 0 if there are none."""
    sample = np.flatnonzero(present)
    if len(sample) > SAMPLE:
        sample = np.sort(np.random.default_rng(0).choice(sample, SAMPLE, replace=False))
    is_sampled = np.zeros(len(present), np.bool_)
    is_sampled[sample] = True
    counted = (ids >= 0) & is_sampled[ids]
    candidates = np.where(counted, np.exp(np.minimum(votes, MOST), dtype=np.float64), 0).sum(axis=1)
    found, number = np.zeros(len(ids), np.float32), len(sample) - counted.sum(axis=1)
    for part in in_parts(np.arange(len(ids)), BLOCK_BYTES // (8 * len(sample))):
        own = _unit(np.array(embeddings[part], np.float32)) @ apart[sample].T - usual[sample]
        total = np.exp(np.minimum(own, MOST), dtype=np.float64).sum(axis=1) - candidates[part]
        found[part] = np.where(number[part] > 0, np.log(np.maximum(total / np.maximum(number[part], 1), 1e-9)), 0)
    return found


def _apart(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """(C, d) unit vectors minus their mean; 0 for a name without one."""
    apart = _unit(np.array(vectors, np.float32))
    known = apart.any(axis=1)
    apart[known] -= apart.sum(axis=0) / max(1, known.sum())
    return apart


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows, scaled in place to length 1."""
    rows /= np.maximum(np.sqrt(np.einsum("ij,ij->i", rows, rows)), 1e-12)[:, None]
    return rows


def _spread(votes: NDArray[np.float32], voting: NDArray[np.bool_]) -> float:
    """Root mean square difference of a vote from the mean of its photo's candidates that have one.

    The mean over all names would not do: candidates look and read much the same, and differ from each other by far less.
    """
    mean = votes.sum(axis=1) / np.maximum(voting.sum(axis=1), 1)
    apart = np.where(voting, votes - mean[:, None], 0)
    return float(np.sqrt(np.square(apart, dtype=np.float64).sum() / max(1, voting.sum())))
