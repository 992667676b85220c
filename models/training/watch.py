"""Losses of the last steps, looked at once in many steps: to look is to wait for the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import distributed
from models.losses.base import nonfinite_error

EVERY = 50  # steps; a GPU that runs through 30 of them a second waits for the host twice in three seconds


class LossWatch:
    """Sum of an epoch's losses, and the photos whose loss is not finite.

    Args:
        ids: (N,) ids of the training photos.
        room: photos of this worker in the largest batch.
    """

    def __init__(self, ids: Sequence[str] | NDArray[np.object_], *, room: int, device: torch.device) -> None:
        self.ids = ids
        self.recent = torch.zeros(EVERY, room, device=device)  # made beforehand: small tensors split the heap
        self.sum = torch.zeros((), dtype=torch.float64, device=device)
        self.positions: list[NDArray[np.int64]] = []
        self.latest, self.lr = self.sum, 0.0

    def add(self, values: Tensor, positions: NDArray[np.int64], *, lr: float) -> None:
        """Takes the losses (n,) of a step, of the photos at these positions (n,); looks at them if it is time to.

        Args:
            lr: learning rate of the step, for the message.

        Raises:
            BatchError: as `check`.
        """
        self.recent[len(self.positions), : len(values)] = values
        self.sum += values.sum(dtype=torch.float64)
        self.latest = values
        self.positions.append(positions)
        self.lr = lr
        if len(self.positions) == EVERY:
            self.check()

    def check(self) -> None:
        """Raises BatchError if one of the losses since the last check is not finite; the message names the photos."""
        steps = len(self.positions)
        is_bad = ~self.recent[:steps].isfinite().cpu().numpy()
        bad = np.concatenate([each[row[: len(each)]] for each, row in zip(self.positions, is_bad, strict=True)] or [[]])
        self.positions = []
        self.recent.zero_()
        if len(bad):
            raise nonfinite_error(sorted({str(self.ids[int(i)]) for i in bad}), lr=self.lr)

    def last_mean(self) -> float:
        """Mean loss of this worker's photos in the last step; waits for the device."""
        return float(self.latest.mean())

    def total(self) -> float:
        """Sum of the epoch's losses over all workers."""
        return distributed.total(float(self.sum))
