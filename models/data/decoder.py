"""Decoding of the photos of a batch into shared rows; runs in loader processes, or in threads of the training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.utils.data import Dataset

import pixels
from models.data.rows import Kept, Rows
from models.data.shards import Shards
from pixels import BadPhoto
from pixels.reduced import decode_reduced, upright_jpeg

GREY = 128  # level of a photo that cannot be decoded, where every photo needs a result


class Task(NamedTuple):
    """A batch to decode. Photos that cannot be decoded are replaced by the next of the batch, or else become grey.

    positions: (n,) photos of the whole batch. needed: (m,) places in the batch that this process needs. ready: (m,) True
    for those that are decoded already. start: first of m passing rows that no other batch uses now.
    """

    positions: NDArray[np.int64]
    needed: NDArray[np.int64]
    ready: NDArray[np.bool_]
    start: int
    is_replaced: bool


class Decoded(NamedTuple):
    """A decoded batch: where its photos are, which they are, and the positions that failed, with reasons.

    rows: (m,) passing rows; -1 for a photo in its kept row. positions: (m,). sizes: (m,) bytes of the JPEG at the start of
    the row, which the device decodes; 0 for pixels.
    """

    rows: NDArray[np.int64]
    positions: NDArray[np.int64]
    sizes: NDArray[np.int64]
    faults: dict[int, str]


@dataclass(frozen=True)
class Decoder(Dataset[Decoded]):
    """Decoder of photos into kept rows, as far as there are any, and passing rows.

    is_reduced: JPEGs much larger than the rows' sides are decoded at a lower resolution, as training needs; otherwise the
    pixels are exactly those that a client sends. leaves_jpegs: plain JPEGs that fit into a row are left for the device.
    """

    shards: Shards
    kept: Kept
    passing: Rows
    is_reduced: bool
    leaves_jpegs: bool = False

    def __getitem__(self, task: Task) -> Decoded:
        positions, faults = task.positions[task.needed], dict[int, str]()
        rows = np.where(positions < len(self.kept), -1, task.start + np.arange(len(positions)))
        sizes = np.zeros(len(positions), np.int64)
        for number in np.flatnonzero(~task.ready).tolist():
            position = int(positions[number])
            if rows[number] < 0 and self._decode(position, self.kept.pixels[position], faults):
                continue
            rows[number] = task.start + number
            sizes[number] = self._leave(position, self.passing.pixels[rows[number]]) if self.leaves_jpegs else 0
            if not sizes[number]:
                positions[number] = self.decode(task, number, faults)
        return Decoded(rows, positions, sizes, faults)

    def decode(self, task: Task, number: int, faults: dict[int, str]) -> int:
        """Position of the photo in passing row `number` of a task: the one that belongs there, or its replacement."""
        position = int(task.positions[task.needed[number]])
        if self._decode(position, self.passing.pixels[task.start + number], faults):
            return position
        return self._replace(task, number, faults)

    def _leave(self, position: int, out: NDArray[np.uint8]) -> int:
        """Bytes of a plain JPEG that is now at the start of the row; 0 if it is another file, too large or unreadable."""
        if self.shards.size[position] > out.nbytes:
            return 0
        try:
            jpeg = upright_jpeg(self.shards.read(position)) or b""
        except BadPhoto:
            return 0
        out.reshape(-1)[: len(jpeg)] = np.frombuffer(jpeg, np.uint8)
        return len(jpeg)

    def _replace(self, task: Task, number: int, faults: dict[int, str]) -> int:
        """Position of the photo, or of the grey square, that takes the passing row of a photo that failed."""
        out, place = self.passing.pixels[task.start + number], int(task.needed[number])
        if task.is_replaced:
            for position in np.roll(task.positions, -place)[1:].tolist():
                if self._decode(position, out, faults):
                    return int(position)
        out[:] = GREY
        return int(task.positions[place])

    def _decode(self, position: int, out: NDArray[np.uint8], faults: dict[int, str]) -> bool:
        """Decodes a photo; False, with the reason among the faults, if that is impossible."""
        if position not in faults:
            try:
                self._write(self.shards.read(position), out)
                return True
            except BadPhoto as error:
                faults[position] = str(error)
        return False

    def _write(self, photo: bytes, out: NDArray[np.uint8]) -> None:
        side = len(out)
        if self.is_reduced:
            resize(decode_reduced(photo, side), out)
        else:
            out[:] = pixels.to_square(pixels.decode(photo, is_accepted=True), side)


def resize(photo: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Squeezes a photo (h, w, 3) into `out` (side, side, 3) as `pixels.to_square` does, to within 1 of 255.

    torch has vector instructions for it, and takes a sixth of Pillow's time.
    """
    if photo.shape == out.shape:
        out[:] = photo
        return
    source, target = (torch.from_numpy(each).permute(2, 0, 1)[None] for each in (photo, out))
    target.copy_(functional.interpolate(source, out.shape[:2], mode="bilinear", antialias=True))
