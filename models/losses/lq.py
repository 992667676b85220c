"""Generalised cross-entropy."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from models.losses.base import LOSSES, Loss, LossBatch
from models.losses.softmax import one_minus_exp
from models.recipe.registry import Range

Power = Annotated[float, Range(0, 1, open_low=True)]


@LOSSES.register("gce", paper="Zhang and Sabuncu, NeurIPS 2018, equation 6")
class GCE(Loss):
    """(1 - p_y^q) / q: cross-entropy as q -> 0, mean absolute error at q = 1.

    Computed as (1 - exp(q log p_y)) / q, which is finite for every p_y, as is its gradient p_y^q. So the clamp of the
    published code, which removes the gradient of samples with p_y < 1e-7, is not needed.

    Args:
        q: in (0, 1].
    """

    def __init__(self, num_classes: int, q: Power = 0.7) -> None:
        super().__init__(num_classes)
        self.q = q

    def value(self, batch: LossBatch) -> Tensor:
        return one_minus_exp(self.q * batch.log_p) / self.q

    def learnable(self) -> dict[str, Range]:
        return {"q": Range(0, 1)}

    def asymmetry_ratio(self) -> float:
        return float(self.q >= 1)
