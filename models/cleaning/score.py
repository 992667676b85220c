"""The log margin of a label."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TINY = 1e-12  # a float32 softmax may give exact zeros; their logarithm is limited to log TINY


def log_margin(p_label: NDArray[np.float32], best_other: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N,) log p(label) - log p(best other class); below 0 the network prefers another label.

    Use out-of-sample probabilities: in sample, a wrong label is memorised and looks right. On human label noise this
    ranks errors best of the rules that use probabilities alone; `report` is the weakest.

    Args:
        p_label: (N,) probability of the given label, in [0, 1].
        best_other: (N,) probability of the most probable other class, in [0, 1].
    """
    return np.log(np.maximum(p_label, TINY).astype(np.float64)) - np.log(
        np.maximum(best_other, TINY).astype(np.float64)
    )
