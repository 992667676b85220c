"""Distillation: a loss that measures the distance to a teacher's answers instead of the distance to a label."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from models.losses.base import Loss, LossBatch


class Distilled(Loss):
    """T^2 KL(teacher || student), both at temperature T (Hinton et al. 2015, arXiv 1503.02531), without any label.

    The teacher's answer is sparse: K classes and the sum of all others, which count as one event for the student too. So
    the student decides itself how the rest is spread. A recipe cannot name this loss, because it needs the answers.

    Args:
        classes: (N, K) classes of each photo, K < C. probs: (N, K + 1) their probabilities, and that of all others.
        temperature: T; the answers are those of a teacher whose logits were divided by it.
    """

    needs_index = True

    def __init__(self, num_classes: int, classes: Tensor, probs: Tensor, *, temperature: float = 1.0) -> None:
        super().__init__(num_classes)
        # Neither buffers nor saved: they are as large as the data, and the same in every process.
        self.classes, self.probs = classes, probs
        self.temperature = temperature

    def value(self, batch: LossBatch) -> Tensor:
        classes, given = self._answers(batch.index)
        logits = batch.logits.to(torch.promote_types(batch.logits.dtype, torch.float32)) / self.temperature
        rest = logits.scatter(1, classes, -torch.inf).logsumexp(1, keepdim=True)
        log_p = torch.cat([logits.gather(1, classes), rest], 1).log_softmax(1)
        return self.temperature**2 * functional.kl_div(log_p, given.to(log_p.dtype), reduction="none").sum(1)

    def _answers(self, index: Tensor | None) -> tuple[Tensor, Tensor]:
        """(n, K) classes and (n, K + 1) probabilities of these photos; all answers move to their device once."""
        assert index is not None
        if self.classes.device != index.device:
            self.classes, self.probs = self.classes.to(index.device), self.probs.to(index.device)
        probs = self.probs[index].float()
        return self.classes[index].long(), probs / probs.sum(1, keepdim=True)  # half precision rounds each
