"""Mixup (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV 2019): each photo of a batch is mixed with another.

The other is the next of the batch, and of the last the first. A batch lies in drawn order, so the next is as random a partner as
any, and a worker needs one photo beyond its part to come to the result of one worker alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import distributed
from models.recipe.config import Augment


@dataclass(frozen=True)
class Label:
    """What photos show, and how much of each is that. share: in [0, 1]. target: (N,) classes. index: (N,) whose label it is."""

    share: float
    target: Tensor
    index: Tensor


class Mixed(NamedTuple):
    """A worker's part of a batch, (n, ...), and the share that each photo has in its own view, in [0, 1]."""

    photos: Tensor
    share: float


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed.

    share: of a photo itself, in [0, 1]. box: rows and columns that come from the next; None: both photos are faded.
    """

    share: float
    box: tuple[slice, slice] | None = None

    def of(self, photos: Tensor) -> Tensor:
        """(n + 1, ...), the last of which is a partner only, to (n, ...)."""
        if self.box is None:
            return self.share * photos[:-1] + (1 - self.share) * photos[1:]
        mixed, (rows, columns) = photos[:-1].clone(), self.box
        mixed[:, :, rows, columns] = photos[1:, :, rows, columns]
        return mixed


def places(length: int, augment: Augment) -> NDArray[np.int64]:
    """Places in a batch of what a worker needs: its part, and with mixing the one after it."""
    own = distributed.part(length)
    return np.arange(own.start, own.stop + augment.mixes) % length


def mixed(photos: Tensor, augment: Augment, generator: torch.Generator) -> Mixed:
    """Views or features of the photos at `places`, mixed as augment says."""
    if not augment.mixes:
        return Mixed(photos, 1.0)
    mix = draw_mix(augment, size=photos.shape[-1], generator=generator)
    return Mixed(mix.of(photos), mix.share)


def draw_mix(augment: Augment, *, size: int, generator: torch.Generator) -> Mix:
    """One share for a whole batch, from Beta(alpha, alpha), as in the authors' codes; where both are on, a coin says which.

    Args:
        size: pixels of a side; CutMix counts them, so that the share is exact where a box ends at the border.
    """
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    cuts = rng.random() < (0.5 if augment.mixup else 1.0) if augment.cutmix else False
    alpha = augment.cutmix if cuts else augment.mixup
    share = float(rng.beta(alpha, alpha))
    if not cuts:
        return Mix(share)
    centre, half = rng.integers(size, size=2), round(size * np.sqrt(1 - share)) // 2
    (top, left), (bottom, right) = (centre - half).clip(0), (centre + half).clip(max=size)
    return Mix(1 - float((bottom - top) * (right - left)) / size**2, (slice(top, bottom), slice(left, right)))


def labels_of(batch: NDArray[np.int64], target: Tensor, *, share: float, device: torch.device) -> Sequence[Label]:
    """What this worker's part of a batch shows.

    Args:
        batch: (n,) positions in `target` of the whole batch.
        share: of each photo itself; the rest shows what the next one does.
    """
    own, index = distributed.part(len(batch)), torch.from_numpy(batch)
    shown = [(share, index[own]), (1 - share, index.roll(-1)[own])]
    return [Label(each, target[rows].to(device), rows.to(device)) for each, rows in shown if each]
