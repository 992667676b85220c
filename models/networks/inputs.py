"""Inputs of a network: random views of photos, or features computed once if the backbone is frozen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import distributed
from models.data.augment import draw_views, random_view, whole_view
from models.data.mixing import Mixed, mix_batch, needed_positions
from models.data.photos import Photos
from models.networks.network import Head, Network
from models.networks.results import collect
from models.progress import with_progress
from models.recipe.config import Augment

# Photos or features scored at a time, by device: logits of 50,030 classes take 51 MB for 256, and a GPU needs more work
# at a time to be busy.
EVAL_BATCH = {"cpu": 64, "cuda": 256}
FEATURES_BATCH = {"cpu": 256, "cuda": 1024}
MIRRORED = Augment()


class Inputs(Protocol):
    """Batches of a set of photos, and the part of the network that processes them."""

    @property
    def part(self) -> Network | Head:
        """The network, or its head: what the batches pass through."""

    def __len__(self) -> int:
        """Number of photos."""

    def training(
        self, order: Sequence[NDArray[np.int64]], generator: torch.Generator, *, size_share: float = 1.0
    ) -> Iterator[Mixed]:
        """This worker's part of each batch of `order`; photos are mixed with the next of the batch if augment says so.

        A photo that cannot be decoded is replaced by the next of its batch.

        Args:
            order: positions of the photos of each batch.
            generator: used when a batch is requested, not before.
            size_share: side of the views, relative to the full size; rounded up to the next multiple of 8 pixels.
        """

    def evaluation(self, part: slice) -> Iterator[Tensor]:
        """Batches of a part of the photos, unaugmented and in order."""


class Views:
    """Photos that pass through the whole network, with a new random view at each draw."""

    def __init__(self, photos: Photos, network: Network, *, size: int, augment: Augment) -> None:
        self.photos, self.part, self.size, self.augment = photos, network, size, augment

    def __len__(self) -> int:
        return len(self.photos)

    def training(
        self, order: Sequence[NDArray[np.int64]], generator: torch.Generator, *, size_share: float = 1.0
    ) -> Iterator[Mixed]:
        """Random views (n, 3, size, size) in [0, 1] of each batch."""
        places = {length: needed_positions(length, self.augment) for length in {*map(len, order)}}
        needed = [places[len(positions)] for positions in order]
        size = view_size(self.size, size_share)
        for positions, own, found in zip(order, needed, self.photos.batches(order, needed), strict=True):
            draw = draw_views(len(positions), augment=self.augment, generator=generator)
            views = random_view(found.photos, size, draw[torch.from_numpy(own)])
            batch = positions.copy()
            batch[own] = found.positions
            yield mix_batch(views, batch, self.augment, generator)

    def evaluation(self, part: slice) -> Iterator[Tensor]:
        """Whole photos (n, 3, size, size) in [0, 1], in order."""
        for photos in self.photos.in_order(EVAL_BATCH[self.photos.device.type], part=part):
            yield whole_view(photos, self.size)


def view_size(size: int, share: float) -> int:
    """Side in pixels of a view that is `share` of `size`, rounded up to a multiple of 8, at most `size`."""
    return min(8 * math.ceil(size * share / 8), size)


class Features:
    """Fixed features that pass through a head only, of each photo and of its mirror image.

    Only flip and mixup of `augment` have an effect.

    Args:
        table: (2, M, d); it may lie in a file that is mapped into memory, and is read where a batch needs it.
        rows: (N,) rows of the table; None: all.
    """

    def __init__(
        self, table: Tensor, head: Head, *, augment: Augment = MIRRORED, rows: NDArray[np.int64] | None = None
    ) -> None:
        self.table, self.part, self.augment = table, head, augment
        self.rows = torch.arange(table.shape[1]) if rows is None else torch.from_numpy(rows)
        self.device = head.embed.weight.device

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def views(self) -> Tensor:
        """(2, N, d) all features, in memory."""
        return self.table[:, self.rows.to(self.table.device)]

    def training(
        self, order: Sequence[NDArray[np.int64]], generator: torch.Generator, *, size_share: float = 1.0
    ) -> Iterator[Mixed]:
        """Features (n, d) of each batch; the size has no effect."""
        for positions in order:
            view = torch.randint(1 + self.augment.flip, (len(positions),), generator=generator)
            own = torch.from_numpy(needed_positions(len(positions), self.augment))
            features = self._read(view[own], self.rows[torch.from_numpy(positions)[own]])
            yield mix_batch(features, positions, self.augment, generator)

    def evaluation(self, part: slice) -> Iterator[Tensor]:
        """Features (n, d) of the unmirrored photos, in order."""
        for rows in self.rows[part].split(FEATURES_BATCH[self.device.type]):
            yield self._read(torch.zeros_like(rows), rows)

    def _read(self, view: Tensor, rows: Tensor) -> Tensor:
        """(n, d) features of these views and rows, on the device of the head."""
        at = torch.stack([view, rows]).to(self.table.device, non_blocking=True)
        found = self.table[at[0], at[1]]
        return found.to(self.device, non_blocking=True)


@contextmanager
def inference(device: torch.device) -> Iterator[None]:
    """Context of a scoring pass: nothing is kept for gradients, and the precision is that of training."""
    with torch.inference_mode(), half_precision(device):
        yield


def half_precision(device: torch.device) -> torch.autocast:
    """Context that computes in bfloat16 on a GPU that has it. CPUs stay in float32, in which the measured ones are faster."""
    has_it = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_it)


def extract(photos: Photos, network: Network, *, size: int, augment: Augment = MIRRORED) -> Features:
    """Features of photos from a frozen backbone; the workers share the computation."""
    own, device = distributed.part(len(photos)), network.mean.device
    views = torch.empty(own.stop - own.start, 2, network.head.embed.in_features, device=device)
    collect(pairs(photos, network, size=size, part=own), views)
    return Features(distributed.concat(views).transpose(0, 1), network.head, augment=augment)


def pairs(photos: Photos, network: Network, *, size: int, part: slice) -> Iterator[Tensor]:
    """(n, 2, d) float32 features of each batch of a part of the photos, in order: of each photo and of its mirror image."""
    network.backbone.eval()
    device = network.mean.device
    batches = photos.in_order(EVAL_BATCH[device.type], part=part)
    for batch in with_progress(batches, "features", part.stop - part.start):
        distributed.check()
        with inference(device):
            whole = whole_view(batch, size)
            pair = torch.stack([network.features(whole), network.features(whole.flip(3))], 1).float()
        yield pair
