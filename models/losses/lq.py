"""Generalised cross-entropy."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from models.losses.base import LOSSES, Loss, log_prob
from models.registry import Range


@LOSSES.register("gce", paper="Zhang and Sabuncu, NeurIPS 2018, equation 6")
class GCE(Loss):
    """(1 - p_y^q) / q: cross-entropy as q -> 0, mean absolute error at q = 1.

    Written as -expm1(q log p_y) / q, which stays finite with its gradient p_y^q for every p_y, without the published
    code's clamp (which silences samples with p_y < 1e-7).

    Args:
        q: in (0, 1].
    """

    def __init__(self, num_classes: int, q: Annotated[float, Range(0, 1, open_low=True)] = 0.7) -> None:
        super().__init__()
        self.q = q

    def forward(self, logits: Tensor, target: Tensor, index: Tensor | None = None) -> Tensor:
        return -torch.expm1(self.q * log_prob(logits, target)) / self.q
