"""The training samples that a loss is built for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Samples:
    """The training set as a loss knows it before the first step; `index` in a batch is a position in these arrays.

    id: (N,) stable sample ids. target: (N,) int64 positions in `classes`.
    """

    id: NDArray[np.object_]
    target: NDArray[np.int64]
    classes: list[str]
