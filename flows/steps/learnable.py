"""The part of a data version that networks learn from labels, by which their trainings are found again."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import pyarrow.compute as pc

from models.data.confusion import NAME as CONFUSION
from models.data.manifest import UNLABELLED, read_table

ROWS = 65_536  # that are hashed at a time


@functools.lru_cache(8)
def learnable(data: Path) -> str:
    """Digest of the photos with a label, their labels and decisions, and the confusions that cleaning estimated.

    An id is the hash of a photo's bytes. Photos without a label do not count, so a batch of them leaves trainings valid:
    only a student learns from these photos.
    """
    total = hashlib.sha256()
    labels = read_table(data, name="labels")
    for batch in labels.filter(pc.not_equal(labels["split"], UNLABELLED)).combine_chunks().to_batches(ROWS):
        total.update(batch.serialize())
    if (data / CONFUSION).is_file():
        total.update((data / CONFUSION).read_bytes())
    return total.hexdigest()
