"""Which photos are held out."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping

SURE = 5  # a class with at least so many photos gives at least one


def hold_out(labels: Mapping[str, str], *, share: float, seed: int, split: str) -> set[str]:
    """The ids that go to `split`: `share` of each class (id to label), never the last photo of one.

    Chosen by a hash of the id, so that neither the order of delivery nor other photos change who is chosen.
    """
    by_class: dict[str, list[str]] = defaultdict(list)
    for photo_id in sorted(labels, key=lambda photo_id: _rank(photo_id, seed=seed, split=split)):
        by_class[labels[photo_id]].append(photo_id)
    return {photo_id for ids in by_class.values() for photo_id in ids[: _quota(len(ids), share=share)]}


def _quota(num_photos: int, *, share: float) -> int:
    wanted = round(share * num_photos)
    if share > 0 and num_photos >= SURE:
        wanted = max(wanted, 1)
    return min(wanted, num_photos - 1)


def _rank(photo_id: str, *, seed: int, split: str) -> bytes:
    return hashlib.sha256(f"{seed}:{split}:{photo_id}".encode()).digest()
