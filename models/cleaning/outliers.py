"""Out-of-distribution photos and near-duplicates, for notebooks: only tests call these two functions here."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.cleaning.inputs import TopK, refuse
from models.cleaning.rule_input import gather
from models.cleaning.votes import similar
from models.errors import CleaningError

MOST_PAIRS = 20_000_000


def find_out_of_set(pred_probs: NDArray[np.floating] | TopK, *, deviations: float = 2.0) -> NDArray[np.bool_]:
    """(N,) bool: True for an out-of-distribution photo, whose best class has low log odds compared with other photos.

    Low means more than `deviations` deviations below the median. One deviation is 1.4826 times the median absolute
    deviation, so that out-of-distribution photos themselves do not widen it. The largest probability of a lightly
    trained network separates these photos better than their neighbours do.

    Args:
        pred_probs: (N, C) or `TopK`, out-of-sample.
        deviations: > 0; a smaller value flags more photos.

    Raises:
        CleaningError: as for `label_quality`, or deviations that are not above 0.
    """
    if not deviations > 0:
        raise CleaningError(f"deviations: {deviations} is not above 0; 2 accepts most photos of the catalogue")
    num = len(pred_probs)
    best = gather(np.full(num, -1, np.int64), pred_probs).p_other.astype(np.float64)
    if num == 0:
        return np.zeros(0, np.bool_)
    odds = np.log(np.clip(best, 1e-12, 1)) - np.log1p(-np.clip(best, 0, 1 - 1e-7))
    spread = 1.4826 * np.median(np.abs(odds - np.median(odds)))
    outside: NDArray[np.bool_] = odds < np.median(odds) - deviations * max(spread, 1e-6)
    return outside


def find_near_duplicates(
    embeddings: NDArray[np.floating], *, cosine: float = 0.98
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(M, 2) pairs of photos with at least this cosine, in order, the smaller position first; (M,) their cosines.

    Exact: compares every pair, in blocks of 64 MB. O(N^2 d) time.

    Args:
        embeddings: (N, d), any scale, from one network. An embedding of zeros is not similar to any other.
        cosine: in (0, 1). In float32 an exact copy has a cosine of 1 to about 1e-6.

    Raises:
        CleaningError: embeddings that are not (N, d) or contain NaN, a cosine out of range, or more than 20 million
            pairs.
    """
    if not 0 < cosine < 1:
        raise CleaningError(f"cosine: {cosine} is outside (0, 1); start with 0.98")
    if embeddings.ndim != 2:
        raise CleaningError(f"embeddings: shape {embeddings.shape}; give (N, d), one row for each photo")
    length = np.sqrt(np.einsum("ij,ij->i", embeddings, embeddings, dtype=np.float64))
    refuse(~np.isfinite(length), "embeddings: NaN or infinity", "drop these photos")
    unit = (embeddings / np.maximum(length, 1e-30)[:, None]).astype(np.float32)
    pairs, cosines, found = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)], 0
    for start, block in similar(unit):
        row, column = np.nonzero(block >= cosine)
        row, column, value = row + start, column, block[row, column]
        later = column > row
        pairs.append(np.stack([row[later], column[later]], axis=1))
        cosines.append(value[later])
        found += int(later.sum())
        if found > MOST_PAIRS:
            raise CleaningError(f"cosine: more than {MOST_PAIRS:,} pairs have at least {cosine}; give a larger value")
    return np.concatenate(pairs), np.concatenate(cosines)
