"""Photos of a data version as uint8 batches: decoded ahead, kept in memory as far as it reaches, and sent to the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.data import machine
from models.data.decoder import Decoded, Decoder, Task
from models.data.faults import Faults
from models.data.jpegs import decode, require_nvjpeg, squeeze_into
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
        on_device: plain JPEGs are decoded on the device, at full resolution, unless they take more bytes than the square of
            `side` px. Decoded photos are not kept then: resumed runs would see others if memory decided who decodes.

    Raises:
        ConfigError: on_device is set for a GPU that cannot do it.
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
        on_device: bool = False,
    ) -> None:
        if on_device and device.type == "cuda":
            require_nvjpeg()
        self.manifest, self.rows, self.side, self.is_reduced = manifest, rows, side, is_reduced
        self.on_device = on_device
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
        return Kept(0 if self.on_device else len(self), side=self.side)

    def _gathered(
        self, order: Sequence[NDArray[np.int64]], needed: Sequence[NDArray[np.int64]] | None
    ) -> Iterator[Batch]:
        places = [np.arange(len(positions)) for positions in order] if needed is None else needed
        loaders = self.loaders if len(order) > FEW else 0
        width = max((len(each) for each in places), default=0)
        passing, sent = Rows(width * num_ahead(loaders), side=self.side), deque[Task]()

        def tasks() -> Iterator[Task]:
            for number, (positions, own) in enumerate(zip(order, places, strict=True)):
                start = number % num_ahead(loaders) * width
                sent.append(Task(positions, own, self._kept.has(positions[own]), start, needed is not None))
                yield sent[-1]

        decoder = Decoder(self._shards, self._kept, passing, self.is_reduced, self.on_device)
        if all(self._kept.has(positions[own]).all() for positions, own in zip(order, places, strict=True)):
            batches: Iterator[Decoded] = map(decoder.__getitem__, tasks())  # nothing to decode, and nothing to start
        else:
            batches = decoded(decoder, tasks(), loaders=loaders)
        for batch in batches:
            yield self._gather(batch, sent.popleft(), decoder)

    def _gather(self, batch: Decoded, task: Task, decoder: Decoder) -> Batch:
        """A batch copied out of the shared rows, into pinned memory if a GPU will fetch it."""
        self._note(batch, task)
        is_kept, shape = batch.rows < 0, (len(batch.rows), self.side, self.side, 3)
        self._kept.filled[batch.positions[is_kept]] = True
        photos = torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        out = photos.numpy()
        if is_kept.all():
            np.take(self._kept.pixels, batch.positions, axis=0, out=out, mode="clip")
        else:
            out[is_kept] = self._kept.pixels[batch.positions[is_kept]]
            is_here = ~is_kept & (batch.sizes == 0)
            out[is_here] = decoder.passing.pixels[batch.rows[is_here]]
        return Batch(
            photos, batch.positions, partial(self._finish, batch, task, decoder) if batch.sizes.any() else None
        )

    def _finish(self, batch: Decoded, task: Task, decoder: Decoder, photos: Tensor) -> None:
        """Decodes the JPEGs of a batch into their places of `photos`, on the device of these.

        The decoder of the CPU has the last word on a file that the device refuses.
        """
        numbers, rows = np.flatnonzero(batch.sizes).tolist(), decoder.passing.pixels
        files = [rows[batch.rows[number]].reshape(-1)[: batch.sizes[number]] for number in numbers]
        found = decode([torch.from_numpy(file) for file in files], photos.device)
        good = {number: photo for number, photo in zip(numbers, found, strict=True) if photo is not None}
        squeeze_into(photos, [*good], [*good.values()])
        for number in (each for each in numbers if each not in good):
            batch.positions[number] = decoder.decode(task, number, batch.faults)
            photos[number] = torch.from_numpy(rows[batch.rows[number]])
        self._note(batch, task)

    def _note(self, batch: Decoded, task: Task) -> None:
        for position, why in batch.faults.items():
            self.faults.note(position, why)
        if task.is_replaced and not batch.faults.keys().isdisjoint(batch.positions.tolist()):
            raise self.faults.error("among them all of one batch")

    def _name(self, position: int) -> str:
        return f"photo {self.manifest.id[self.rows[position]]} in shards/{self._shards.name(position)}"
