"""Mixup (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV 2019): each photo of a batch is mixed with another.

The partner is the next photo of the batch, and the first photo for the last. Batches are in random order, so the next
photo is a random partner, and a worker needs only one photo beyond its part to get the same result as a single worker.
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
    """Labels of N mixed photos that apply to a share of each.

    share: in [0, 1]. target: (N,) classes. index: (N,) positions of the photos whose labels these are.
    """

    share: float
    target: Tensor
    index: Tensor

    def __getitem__(self, part: slice) -> Label:
        """Labels of a part of the photos."""
        return Label(self.share, self.target[part], self.index[part])


class Mixed(NamedTuple):
    """A worker's part of a mixed batch.

    photos: (n, ...). share: in [0, 1], that each photo keeps in its own view. batch: (m,) positions of the whole batch,
    whose labels apply: those asked for, but in this worker's part (and for the partner after it) a photo that could not be
    decoded is replaced by the next of the batch that could.
    """

    photos: Tensor
    share: float
    batch: NDArray[np.int64]


@dataclass(frozen=True)
class Mix:
    """Parameters of mixing a batch.

    share: share that a photo keeps, in [0, 1]. box: rows and columns taken from the partner (CutMix); None: photos are
    blended (mixup).
    """

    share: float
    box: tuple[slice, slice] | None = None

    def apply(self, photos: Tensor) -> Tensor:
        """Mixed photos (n, ...) of photos (n + 1, ...), the last of which serves only as a partner."""
        if self.box is None:
            return self.share * photos[:-1] + (1 - self.share) * photos[1:]
        mixed, (rows, columns) = photos[:-1].clone(), self.box
        mixed[:, :, rows, columns] = photos[1:, :, rows, columns]
        return mixed


def needed_positions(length: int, augment: Augment) -> NDArray[np.int64]:
    """Positions in a batch that a worker needs: its part, and with mixing the one after it."""
    own = distributed.part(length)
    return np.arange(own.start, own.stop + augment.mixes) % length


def mix_batch(photos: Tensor, batch: NDArray[np.int64], augment: Augment, generator: torch.Generator) -> Mixed:
    """Views or features of the photos at `needed_positions` of a batch, mixed as augment says."""
    if not augment.mixes:
        return Mixed(photos, 1.0, batch)
    mix = draw_mix(augment, size=photos.shape[-1], generator=generator)
    return Mixed(mix.apply(photos), mix.share, batch)


def draw_mix(augment: Augment, *, size: int, generator: torch.Generator) -> Mix:
    """Mix for a whole batch, with one share from Beta(alpha, alpha), as in the authors' code.

    If both mixup and CutMix are on, each is used for half of the batches, at random.

    Args:
        size: side in pixels; CutMix counts the pixels of its box, so that the share is exact at the border too.
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
    """Labels of this worker's part of a batch, with their shares.

    Args:
        batch: (n,) positions in `target` of the whole batch.
        share: share of each photo itself; the rest has the label of the next photo.
    """
    own, index = distributed.part(len(batch)), torch.from_numpy(batch)
    shares = [(share, index[own]), (1 - share, index.roll(-1)[own])]
    packed = [torch.stack([target[rows], rows]) for each, rows in shares if each]
    copies = torch.stack(packed).to(device, non_blocking=True)  # in one piece and without waiting for the device
    return [Label(each, *copy) for each, copy in zip([each for each, _ in shares if each], copies, strict=True)]
