"""Votes of names: which candidate's name a photo is like, to an encoder of images and texts such as CLIP or SigLIP.

The image tower gave the features of the photo, the text tower the vector of each name; both lie in one space.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.cleaning.joined import Table
from models.cleaning.votes import BLOCK_BYTES, in_parts


def name_vote(embeddings: Table, vectors: NDArray[np.floating], ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """(N, K) cosine of each photo and the name of each candidate class, in units of its spread; on average 0.

    Two means are taken off. One is that of the photo over all names: what remains tells classes apart, and a class without a
    vector stands at 0, where it speaks neither for nor against itself. The other is that of the name over all photos, because
    some names are like any photo. Time O(N K d), memory O(C d).

    Args:
        embeddings: (N, d) features of the photos.
        vectors: (C, d) of the names, of any length; a row of zeros for a name without one.
        ids: (N, K) candidate classes; the vote for -1 is 0.
    """
    apart, votes = _apart(vectors), np.zeros(ids.shape, np.float32)
    total = np.zeros(apart.shape[1])
    for part in in_parts(np.arange(len(ids)), BLOCK_BYTES // (4 * ids.shape[1] * apart.shape[1])):
        unit = _unit(np.asarray(embeddings[part], np.float32))
        total += unit.sum(axis=0, dtype=np.float64)
        votes[part] = np.einsum("ikj,ij->ik", apart[ids[part]], unit)
    votes -= (apart @ (total / max(1, len(ids))).astype(np.float32))[ids]
    voting = (ids >= 0) & vectors.any(axis=1)[ids]
    votes[~voting] = 0
    spread = _spread(votes, voting)
    return votes / spread if spread > 0 else np.zeros_like(votes)


def _apart(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """(C, d) unit vectors minus their mean; 0 for a name without one."""
    apart = _unit(vectors.astype(np.float32))
    known = apart.any(axis=1)
    apart[known] -= apart.sum(axis=0) / max(1, known.sum())
    return apart


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    rows /= np.maximum(np.sqrt(np.einsum("ij,ij->i", rows, rows)), 1e-12)[:, None]
    return rows


def _spread(votes: NDArray[np.float32], voting: NDArray[np.bool_]) -> float:
    """Root mean square difference of a vote from the mean of its photo's candidates that have one.

    The mean over all names would not do: candidates look and read alike, and differ from each other by far less.
    """
    mean = votes.sum(axis=1) / np.maximum(voting.sum(axis=1), 1)
    apart = np.where(voting, votes - mean[:, None], 0)
    return float(np.sqrt(np.square(apart, dtype=np.float64).sum() / max(1, voting.sum())))
