"""What a network is fed: random views of photos, or features computed once when its backbone is frozen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import distributed
from models.data.augment import draw_views, random_view, whole_view
from models.data.mixing import Mixed, mixed, places
from models.data.photos import Photos
from models.networks.network import Head, Network, Output
from models.recipe.config import Augment

EVAL_BATCH = 64
MIRRORED = Augment()


class Inputs(Protocol):
    """Batches of one set of photos, and the part of the network that they go through.

    training: this worker's part of each batch of `order`, each photo mixed with the next of the batch where augment says so; the
        generator is used when a batch is asked for, not before. Views have `size_share` of the side, to the next 8 pixels.
    evaluation: a part of the photos as they are, first to last.
    embedding: (N, 512) what forward gives, without the logits.
    """

    def training(
        self, order: Sequence[NDArray[np.int64]], generator: torch.Generator, *, size_share: float = 1.0
    ) -> Iterator[Mixed]: ...

    def evaluation(self, part: slice) -> Iterator[Tensor]: ...

    def forward(self, batch: Tensor) -> Output: ...

    def embedding(self, batch: Tensor) -> Tensor: ...


class Views:
    """Photos through the whole network, a fresh random view at each training draw."""

    def __init__(self, photos: Photos, network: Network, *, size: int, augment: Augment) -> None:
        self.photos, self.network, self.size, self.augment = photos, network, size, augment
        self.device = network.mean.device

    def training(
        self, order: Sequence[NDArray[np.int64]], generator: torch.Generator, *, size_share: float = 1.0
    ) -> Iterator[Mixed]:
        needed = [positions[places(len(positions), self.augment)] for positions in order]
        size = view_size(self.size, size_share)
        for positions, photos in zip(order, self.photos.batches(needed), strict=True):
            draw = draw_views(len(positions), augment=self.augment, generator=generator)
            own = torch.from_numpy(places(len(positions), self.augment))
            yield mixed(random_view(photos.to(self.device), size, draw[own]), self.augment, generator)

    def evaluation(self, part: slice) -> Iterator[Tensor]:
        for photos in self.photos.in_order(EVAL_BATCH, part=part):
            yield whole_view(photos.to(self.device), self.size)

    def forward(self, batch: Tensor) -> Output:
        output: Output = self.network(batch)
        return output

    def embedding(self, batch: Tensor) -> Tensor:
        return self.network.embedding(batch)


def view_size(size: int, share: float) -> int:
    """Pixels of a side that is `share` of `size`: the next multiple of 8, at most the whole."""
    return min(8 * math.ceil(size * share / 8), size)


class Features:
    """Fixed features through a head: views (2, N, d), of each photo as it is and of its mirror image.

    Of `augment`, flip and mixup have an effect.
    """

    def __init__(self, views: Tensor, head: Head, *, augment: Augment = MIRRORED) -> None:
        self.views, self.head, self.augment = views, head, augment

    def training(
        self, order: Sequence[NDArray[np.int64]], generator: torch.Generator, *, size_share: float = 1.0
    ) -> Iterator[Mixed]:
        for positions in order:
            view = torch.randint(1 + self.augment.flip, (len(positions),), generator=generator)
            own = torch.from_numpy(places(len(positions), self.augment))
            yield mixed(self.views[view[own], torch.from_numpy(positions)[own]], self.augment, generator)

    def evaluation(self, part: slice) -> Iterator[Tensor]:
        yield from self.views[0, part].split(1024)

    def forward(self, batch: Tensor) -> Output:
        output: Output = self.head(batch)
        return output

    def embedding(self, batch: Tensor) -> Tensor:
        return self.head.embedding(batch)


def extract(photos: Photos, network: Network, *, size: int, augment: Augment = MIRRORED) -> Features:
    """What a frozen backbone makes of photos, computed once; workers share it."""
    network.backbone.eval()
    none = torch.empty(0, network.head.embed.in_features, device=network.mean.device)
    plain, mirrored = [none], [none]
    with torch.inference_mode():
        for batch in photos.in_order(EVAL_BATCH, part=distributed.part(len(photos))):
            view = whole_view(batch.to(network.mean.device), size)
            plain.append(network.features(view))
            mirrored.append(network.features(view.flip(3)))
        views = torch.stack([distributed.concat(torch.cat(each)) for each in (plain, mirrored)])
    return Features(views.clone(), network.head, augment=augment)  # a clone is usable in autograd
