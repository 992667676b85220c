"""NNK neighbours (Shekkizhar and Ortega, arXiv 1910.09383) as a detector, after arXiv 2508.00202.

A photo is written as a non-negative combination of its nearest others, in the space of the kernel; those behind a nearer
one in the same direction get no weight. The label is called wrong if the weights are larger for another class. The
kernel is (1 + cosine) / 2, which lies in [0, 1]; K others are offered, as in the papers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from opponents.evidence import Evidence, Opinion, nearest, outvoted, shares

K = 50
RIDGE = 1e-6  # on the diagonal, so that equal photos have a factor


def nnk(evidence: Evidence) -> Opinion:
    """Opinion by the weights of the non-negative combination."""
    near, _ = nearest(evidence.unit, K)
    weight = np.stack([weights(evidence.unit[row], evidence.unit[others]) for row, others in enumerate(near)])
    return outvoted(shares(evidence.labels[near], weight, num_classes=evidence.num_classes), evidence.labels)


def weights(photo: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    """(k,) least ||phi(photo) - sum w_i phi(others_i)||^2 over w >= 0, with phi the map of the kernel.

    With K = L L' the Cholesky factor, it is the non-negative least squares ||L' w - L^-1 k||^2.
    """
    kernel = 0.5 + 0.5 * (others @ others.T).astype(np.float64)
    to_photo = 0.5 + 0.5 * (others @ photo).astype(np.float64)
    factor = np.linalg.cholesky(kernel + RIDGE * np.eye(len(others)))
    found: NDArray[np.float64] = nnls(factor.T, np.linalg.solve(factor, to_photo))[0]
    return found
