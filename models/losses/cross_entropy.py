"""Cross-entropy and its smoothed form."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional

from models.losses.base import LOSSES, Loss
from models.registry import Range


@LOSSES.register("ce", paper="label smoothing: Szegedy et al., CVPR 2016, section 7")
class CrossEntropy(Loss):
    """-(1 - s) log p_y - s mean_k log p_k; s = 0 is plain cross-entropy.

    Args:
        label_smoothing: s, in [0, 1).
    """

    def __init__(self, num_classes: int, label_smoothing: Annotated[float, Range(0, 1, open_high=True)] = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, target: Tensor, index: Tensor | None = None) -> Tensor:
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return functional.cross_entropy(logits, target, reduction="none", label_smoothing=self.label_smoothing)
