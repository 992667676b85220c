"""What a network is fed: random views of photos, or features computed once when its backbone is frozen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.config import Augment
from models.data.augment import random_view, whole_view
from models.data.photos import Photos
from models.network import Network, Output

EVAL_BATCH = 64


class Inputs(Protocol):
    """Batches of one set of photos, and the part of the network that they go through."""

    def training(self, order: Sequence[NDArray[np.int64]], generator: torch.Generator) -> Iterator[Tensor]: ...

    def evaluation(self) -> Iterator[Tensor]: ...

    def forward(self, batch: Tensor) -> Output: ...


class Views:
    """Photos through the whole network, a fresh random view at each training draw."""

    def __init__(self, photos: Photos, network: Network, *, size: int, augment: Augment) -> None:
        self.photos, self.network, self.size, self.augment = photos, network, size, augment
        self.device = network.mean.device

    def training(self, order: Sequence[NDArray[np.int64]], generator: torch.Generator) -> Iterator[Tensor]:
        for photos in self.photos.batches(order):
            yield random_view(photos.to(self.device), self.size, augment=self.augment, generator=generator)

    def evaluation(self) -> Iterator[Tensor]:
        for photos in self.photos.in_order(EVAL_BATCH):
            yield whole_view(photos.to(self.device), self.size)

    def forward(self, batch: Tensor) -> Output:
        output: Output = self.network(batch)
        return output


class Features:
    """Pooled features of a frozen backbone, of the whole photo and of its mirror image, computed once."""

    def __init__(self, photos: Photos, network: Network, *, size: int) -> None:
        self.head = network.head
        network.backbone.eval()
        none = torch.empty(0, network.head.embed.in_features, device=network.mean.device)
        plain, mirrored = [none], [none]
        with torch.inference_mode():
            for batch in photos.in_order(EVAL_BATCH):
                view = whole_view(batch.to(network.mean.device), size)
                plain.append(network.features(view))
                mirrored.append(network.features(view.flip(3)))
        self.views = torch.stack([torch.cat(plain), torch.cat(mirrored)]).clone()  # (2, N, d), usable in autograd

    def training(self, order: Sequence[NDArray[np.int64]], generator: torch.Generator) -> Iterator[Tensor]:
        for positions in order:
            view = torch.randint(2, (len(positions),), generator=generator)
            yield self.views[view, torch.from_numpy(positions)]

    def evaluation(self) -> Iterator[Tensor]:
        yield from self.views[0].split(1024)

    def forward(self, batch: Tensor) -> Output:
        output: Output = self.head(batch)
        return output
