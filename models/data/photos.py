"""Photos of a data version as uint8 batches: decoded ahead, kept in memory as far as it reaches, and sent to the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.data import machine
from models.data.decoder import Decoded, Decoder, Task
from models.data.faults import Faults
from models.data.loader import decoded, num_ahead
from models.data.manifest import Manifest
from models.data.rows import Kept, Rows
from models.data.shards import Shards
from models.data.transfer import CPU, Batch, carried, carrier_to

FEW = 2  # batches that do not pay for starting processes


class Photos:
    """Rows of a manifest as square photos of `side` pixels.

    Args:
        rows: (N,) positions in the manifest; position i here is row rows[i] there.
        device: on which the batches are needed.
        loaders: processes that decode; 0: as many as the cores allow for a GPU, and threads for the CPU.
        is_reduced: JPEGs much larger than `side` are decoded at a lower resolution, as training needs; otherwise the
            pixels are exactly those that a client sends.
    """

    def __init__(
        self,
        manifest: Manifest,
        rows: NDArray[np.int64],
        *,
        side: int,
        device: torch.device = CPU,
        loaders: int = 0,
        is_reduced: bool = False,
    ) -> None:
        self.manifest, self.rows, self.side, self.is_reduced = manifest, rows, side, is_reduced
        self.device, self.loaders = device, machine.num_loaders(loaders, device)
        self.faults = Faults(len(rows), self._name)

    def __len__(self) -> int:
        return len(self.rows)

    def batches(
        self, order: Sequence[NDArray[np.int64]], needed: Sequence[NDArray[np.int64]] | None = None
    ) -> Iterator[Batch]:
        """Batches on the device, one per array of positions; the next ones are decoded while one is used.

        Args:
            needed: places in each batch that this process needs; a photo of them that cannot be decoded is replaced by
                the next in its batch that can, or the first after the last. None: all, and such a photo is grey.

        Raises:
            ManifestError: a shard is missing, or too many photos cannot be decoded.
            LoaderError: a loader process died, or gives nothing.
        """
        return carried(self._gathered(order, needed), carrier_to(self.device))

    def in_order(self, batch_size: int, *, part: slice = slice(None)) -> Iterator[Tensor]:
        """Batches of the photos of a part, in order; a photo that cannot be decoded is grey."""
        start, stop, _ = part.indices(len(self))
        order = [np.arange(i, min(i + batch_size, stop)) for i in range(start, stop, batch_size)]
        return (batch.photos for batch in self.batches(order))

    @cached_property
    def _shards(self) -> Shards:
        return Shards(self.manifest, self.rows)

    @cached_property
    def _kept(self) -> Kept:
        return Kept(len(self), side=self.side)

    def _gathered(
        self, order: Sequence[NDArray[np.int64]], needed: Sequence[NDArray[np.int64]] | None
    ) -> Iterator[Batch]:
        places = [np.arange(len(positions)) for positions in order] if needed is None else needed
        loaders = self.loaders if len(order) > FEW else 0
        width = max((len(each) for each in places), default=0)
        passing = Rows(width * num_ahead(loaders), side=self.side)

        def tasks() -> Iterator[Task]:
            for number, (positions, own) in enumerate(zip(order, places, strict=True)):
                start = number % num_ahead(loaders) * width
                yield Task(positions, own, self._kept.has(positions[own]), start, is_replaced=needed is not None)

        decoder = Decoder(self._shards, self._kept, passing, self.is_reduced)
        if all(self._kept.has(positions[own]).all() for positions, own in zip(order, places, strict=True)):
            batches: Iterator[Decoded] = map(decoder.__getitem__, tasks())  # nothing to decode, and nothing to start
        else:
            batches = decoded(decoder, tasks(), loaders=loaders)
        for batch in batches:
            yield self._gather(batch, passing, is_replaced=needed is not None)

    def _gather(self, batch: Decoded, passing: Rows, *, is_replaced: bool) -> Batch:
        """A batch copied out of the shared rows, into pinned memory if a GPU will fetch it."""
        for position, why in batch.faults.items():
            self.faults.note(position, why)
        if is_replaced and not batch.faults.keys().isdisjoint(batch.positions.tolist()):
            raise self.faults.error("among them all of one batch")
        is_kept, shape = batch.rows < 0, (len(batch.rows), self.side, self.side, 3)
        self._kept.filled[batch.positions[is_kept]] = True
        photos = torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        out = photos.numpy()
        if is_kept.all():
            np.take(self._kept.pixels, batch.positions, axis=0, out=out, mode="clip")
        else:
            out[is_kept] = self._kept.pixels[batch.positions[is_kept]]
            out[~is_kept] = passing.pixels[batch.rows[~is_kept]]
        return Batch(photos, batch.positions)

    def _name(self, position: int) -> str:
        return f"photo {self.manifest.id[self.rows[position]]} in shards/{self._shards.name(position)}"
