"""Selection of the photos that are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

SURE = 5  # a class with at least this many photos gives at least one


def hold_out(ids: Sequence[str], labels: ArrayLike, *, share: float, seed: int, split: str) -> NDArray[np.bool_]:
    """(N,) true for photos that go to `split`: `share` of each class (labels (N,)), but never its last photo.

    The choice depends on a hash of the id, so neither the order of delivery nor other photos change it.
    """
    ranks = np.fromiter((_rank(photo_id, seed=seed, split=split) for photo_id in ids), np.uint64, count=len(ids))
    _, label, counts = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.lexsort((ranks, label))
    quotas = np.array([_quota(int(count), share=share) for count in counts], np.int64)
    position = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)  # of each photo within its class
    chosen = np.zeros(len(order), np.bool_)
    chosen[order] = position < np.repeat(quotas, counts)
    return chosen


def _quota(num_photos: int, *, share: float) -> int:
    wanted = round(share * num_photos)
    if share > 0 and num_photos >= SURE:
        wanted = max(wanted, 1)
    return min(wanted, num_photos - 1)


def _rank(photo_id: str, *, seed: int, split: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{split}:{photo_id}".encode()).digest()[:8])
