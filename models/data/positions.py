"""Positions of ids and labels in a column that holds each of them once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Texts = NDArray[Any] | Sequence[str]


def positions(wanted: Texts, among: Texts) -> NDArray[np.int64]:
    """(N,) position of each text of `wanted` (N,) in `among` (M,); -1 for a text that is not there.

    Hashes each text once, O(N + M). On arrays of objects, numpy's `isin` compares every text with every other.
    """
    found = pc.index_in(pa.array(wanted, pa.string()), value_set=pa.array(among, pa.string()))
    return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), np.int64)
