"""Claims: each row of a delivery says that a photo has a label, or that it has none."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from flows.data.columns import to_numpy
from flows.data.fingerprints import FINGERPRINTS
from flows.delivery.rows import ROWS
from models.data.manifest import INDEX, SPLITS, UNLABELLED

# Sorted by id, then by source, path and label.
CLAIMS = pa.schema([*FINGERPRINTS, *(INDEX.field(name) for name in ("sha256", "width", "height")), *ROWS])


class Claimed(NamedTuple):
    """The P photos of N claims: ids (P,), position of the first claim on each (P,), and number of each claim's photo (N,)."""

    id: NDArray[np.bytes_]
    first: NDArray[np.int64]
    photo: NDArray[np.int64]

    @classmethod
    def of(cls, claims: pa.Table) -> Claimed:
        """The photos of `claims` (columns of CLAIMS, at least one row)."""
        ids = to_numpy(claims["id"], 16)
        first = np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))
        return cls(ids[first], first, np.repeat(np.arange(len(first)), np.diff(first, append=len(ids))))


def is_labelled(claims: pa.Table) -> NDArray[np.bool_]:
    """(N,) true for each claim with a label."""
    return pc.not_equal(claims["label"], "").to_numpy()


def has_effect(
    claims: pa.Table, claimed: Claimed, *, held: NDArray[np.bool_], out: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """(N,) true for each claim that changes anything.

    A claim without a label changes nothing if another claim labels the photo. held (P,): photos of the base, which claims
    without a label do not change. out (P,): photos without a label that a person took out, which no claim changes.
    """
    names = is_labelled(claims)
    named = np.logical_or.reduceat(names, claimed.first)
    return np.where(names, ~out[claimed.photo], ~(named | held)[claimed.photo])


def furthest_from_training(splits: pa.ChunkedArray, first: NDArray[np.int64]) -> NDArray[np.object_]:
    """(P,) the split furthest from training that any claim on a photo names; `first` (P,) is where its claims start."""
    names = ["", *SPLITS, UNLABELLED]
    furthest = np.maximum.reduceat(pc.index_in(splits, value_set=pa.array(names)).to_numpy(), first)
    return np.array(["train", *names[1:]], object)[furthest]
