"""How much a photo's label is believed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TINY = 1e-12  # a float32 softmax gives exact zeros; their logarithm is cut here


def log_margin(p_label: NDArray[np.float32], best_other: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N,) log p(label) - log max over the other classes; below 0 the network prefers another label.

    Use probabilities from a network that was not trained on the photo: in sample, a wrong label is memorised and looks
    right. On human label noise this ranks errors best of the rules we know (the report's own rule, "disagrees and is
    unsure", is the weakest).

    Args:
        p_label: (N,) probability of the given label, in [0, 1].
        best_other: (N,) probability of the most probable other class, in [0, 1].
    """
    return np.log(np.maximum(p_label, TINY).astype(np.float64)) - np.log(
        np.maximum(best_other, TINY).astype(np.float64)
    )
