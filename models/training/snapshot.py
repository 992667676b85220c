"""State that passes of a batch change beside the gradients, so that a batch that ran out of memory can begin again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.losses import Loss


class Snapshot:
    """Batch norm statistics, the notes of a loss, and torch's random state, which `seed_step` set for this step.

    Args:
        part: module that batches pass through.
    """

    def __init__(self, part: nn.Module, loss: Loss) -> None:
        self.buffers, self.loss, self.noted = list(part.buffers()), loss, 0
        self.copies = [buffer.clone() for buffer in self.buffers]  # made beforehand: small tensors split the heap

    def take(self) -> None:
        """Keeps the present state."""
        _copy(self.buffers, to=self.copies)
        if self.loss.memory is not None:
            self.noted = self.loss.memory.noted

    def restore(self) -> None:
        """Returns to the state kept by `take`."""
        _copy(self.copies, to=self.buffers)
        torch.manual_seed(torch.initial_seed())
        if self.loss.memory is not None:
            self.loss.memory.noted = self.noted


@torch.no_grad()
def _copy(tensors: list[Tensor], *, to: list[Tensor]) -> None:
    if tensors:
        torch._foreach_copy_(to, tensors)  # a few launches on a GPU instead of hundreds
