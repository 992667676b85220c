"""Golden images of a model version with their answers, and the comparison of other answers with these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Golden:
    """Golden images, and the answers that local ONNX Runtime gave when the version was written."""

    image: NDArray[np.uint8]  # (G, S, S, 3)
    ids: NDArray[np.int64]  # (G, k)
    probs: NDArray[np.float32]  # (G, k)

    def differs(
        self, number: int, ids: NDArray[Any], probs: NDArray[Any], *, tolerance: float, strict: bool = True
    ) -> str:
        """Difference between an answer, `ids` (k,) and `probs` (k,), and the golden one to image `number`; "" if none.

        Args:
            tolerance: largest difference of a probability.
            strict: every id needs its rank. Otherwise classes closer than twice the tolerance may swap ranks.
        """
        want = self.probs[number].astype(np.float64)
        gap = -np.diff(want, append=want[-1]) > 2 * tolerance  # the last rank has no known neighbour
        firm = np.full(len(want), True) if strict else gap & np.append(True, gap[:-1])
        off = float(np.abs(probs - want).max())
        if np.array_equal(ids[firm], self.ids[number][firm]) and off <= tolerance:
            return ""
        return (
            f"ids {ids.tolist()}, probabilities off by {off:.2g}; "
            f"want ids {self.ids[number].tolist()} within {tolerance:.2g}"
        )
