"""Passes of photos through the branches of a graph: batches on its device, and the features of its backbones.

Workers (models.distributed) share a pass: each shows its graph a part of the photos, in their order.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import distributed
from models.data.manifest import Manifest
from models.data.photos import Photos
from models.export.graph import DeployGraph
from models.export.measure import BATCH
from models.networks.network import best_device
from models.progress import with_progress


def train_rows(manifest: Manifest, *, per_class: int) -> NDArray[np.int64]:
    """Rows of kept training photos, at most `per_class` of a class."""
    rows = np.flatnonzero((manifest.split == "train") & manifest.kept & (manifest.target >= 0))
    target = manifest.target[rows]
    order = np.argsort(target, kind="stable")
    starts = np.searchsorted(target[order], target[order])
    return np.sort(rows[order[np.arange(len(order)) - starts < per_class]])


def shown(manifest: Manifest, rows: NDArray[np.int64], *, side: int, on_device: bool = False) -> Photos:
    """Photos of `side` px for a graph in torch, on the best device.

    on_device: plain JPEGs are decoded there, as `train.decode` asks; their pixels are those of a client up to rounding. The
    answers of the exported graph (models.export.measure) and its golden photos are always from a client's own decoder.
    """
    return Photos(manifest, rows, side=side, device=best_device(), on_device=on_device)


@torch.inference_mode()
def pooled(graph: DeployGraph, photos: Photos, *, what: str) -> Iterator[list[Tensor]]:
    """Features (B, d) of each member's backbone for the centre crops of this worker's photos, batch by batch."""
    for image, _ in batches(graph, photos, what=what):
        values = graph.pixels(image)
        yield [branch.pooled(values, branch.crops[:1]) for branch in graph.members]


@torch.inference_mode()
def kept(graph: DeployGraph, photos: Photos, *, what: str) -> list[Tensor]:
    """Features (N, d) of each member as of `pooled`, on the CPU, of the photos of all workers."""
    num, done = num_own(photos), 0
    out = [torch.empty(num, branch.embed.in_features) for branch in graph.members]
    for batch in pooled(graph, photos, what=what):
        for whole, part in zip(out, batch, strict=True):
            whole[done : done + len(part)] = part
        done += len(batch[0])
    return [distributed.concat(each) for each in out]


@contextmanager
def embeddings(graph: DeployGraph, photos: Photos, *, folder: Path | None = None) -> Iterator[list[Spool]]:
    """Embeddings (n, d) of each member for the centre crops of this worker's photos, in temporary files of `folder`."""
    with ExitStack() as stack:
        spools = [stack.enter_context(open_spool(branch.embed.out_features, folder)) for branch in graph.members]
        for batch in pooled(graph, photos, what="discriminants"):
            for spool, branch, features in zip(spools, graph.members, batch, strict=True):
                with torch.inference_mode():
                    spool.add(branch.embedding(features))
        yield spools


@contextmanager
def open_spool(width: int, folder: Path | None = None) -> Iterator[Spool]:
    """An empty table of `width` columns in a nameless temporary file of a folder; None: the system's."""
    with tempfile.TemporaryFile(dir=folder) as file:
        yield Spool(file, width)


class Spool:
    """Rows (n, d) float32 in an open file, added at the end and read as slices; memory holds one slice."""

    def __init__(self, file: IO[bytes], width: int) -> None:
        self._file, self._num, self._width = file, 0, width

    def __len__(self) -> int:
        return self._num

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d)."""
        return self._num, self._width

    def add(self, rows: Tensor) -> None:
        """Adds rows (n, d) of any device."""
        self._file.write(rows.float().cpu().numpy().tobytes())
        self._num += len(rows)

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        self._file.flush()
        start, stop, _ = rows.indices(self._num)
        of_row = 4 * self._width
        read = os.pread(self._file.fileno(), max(stop - start, 0) * of_row, start * of_row)
        return np.frombuffer(read, np.float32).reshape(-1, self._width)


def batches(graph: DeployGraph, photos: Photos, *, what: str) -> Iterator[tuple[Tensor, Tensor]]:
    """This worker's photos (B, S, S, 3) with their labels (B,), on the best device, to which the graph is moved.

    what: name of the pass in its progress.
    """
    device, own = graph.to(best_device()).eval().weights.device, distributed.part(len(photos))
    labels = torch.from_numpy(photos.manifest.target[photos.rows[own]]).split(BATCH) if num_own(photos) else ()
    images = with_progress(photos.in_order(BATCH, part=own), what, num_own(photos))
    for image, label in zip(images, labels, strict=True):
        distributed.check()
        yield image.to(device), label.to(device)


def num_own(photos: Photos) -> int:
    """Number of photos of this worker's part."""
    own = distributed.part(len(photos))
    return own.stop - own.start
