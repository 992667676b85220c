"""Asymmetric losses: minimising them under dominant clean labels gives the clean label back."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from models.losses.base import LOSSES, Loss, log_prob
from models.registry import Range


@LOSSES.register("agce", paper="Zhou et al., ICML 2021 (arXiv 2106.03110), section 4")
class AGCE(Loss):
    """((a + 1)^q - (a + p_y)^q) / q, bounded, so that one mislabelled product cannot dominate a batch.

    Args:
        a: shift, > 0. Larger is closer to mean absolute error: more robust, slower to fit.
        q: power, > 0; completely asymmetric for q >= 1.
    """

    def __init__(
        self,
        num_classes: int,
        a: Annotated[float, Range(0, open_low=True)] = 0.6,
        q: Annotated[float, Range(0, open_low=True)] = 0.6,
    ) -> None:
        super().__init__()
        self.a, self.q = a, q

    def forward(self, logits: Tensor, target: Tensor, index: Tensor | None = None) -> Tensor:
        p = log_prob(logits, target).exp()
        loss: Tensor = ((self.a + 1) ** self.q - (self.a + p) ** self.q) / self.q
        return loss
