"""The training samples that a loss is built for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Samples:
    """What a loss may know of the training set before the first step.

    id: (N,) stable sample ids. target: (N,) int64 positions in `classes`. Position i is what `index` calls i.
    """

    id: NDArray[np.object_]
    target: NDArray[np.int64]
    classes: list[str]
