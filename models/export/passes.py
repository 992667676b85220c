"""Passes of photos through the branches of a graph: batches on its device, and the features of its backbones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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


@torch.inference_mode()
def pooled(
    graph: DeployGraph, manifest: Manifest, rows: NDArray[np.int64], *, side: int, what: str
) -> Iterator[list[Tensor]]:
    """Features (B, d) of each member's backbone for the centre crops of photos, batch by batch."""
    for image, _ in batches(graph, Photos(manifest, rows, side=side), manifest.target[rows], what=what):
        values = graph.pixels(image)
        yield [branch.pooled(values, branch.crops[:1]) for branch in graph.members]


@torch.inference_mode()
def kept(parts: Iterator[list[Tensor]], num: int) -> list[Tensor]:
    """Features (num, d) of each member from its batches, on the CPU; num > 0."""
    out, done = list[Tensor](), 0
    for batch in parts:
        out = out or [torch.empty(num, part.shape[1]) for part in batch]
        for whole, part in zip(out, batch, strict=True):
            whole[done : done + len(part)] = part
        done += len(batch[0])
    return out


def batches(
    graph: DeployGraph, photos: Photos, target: NDArray[np.int64], *, what: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Photos (B, S, S, 3) and their labels (B,) on the best device, to which the graph is moved; with progress of `what`."""
    device = graph.to(best_device()).eval().weights.device
    images = with_progress(photos.in_order(BATCH), what, len(photos))
    for image, label in zip(images, torch.from_numpy(target).split(BATCH), strict=True):
        yield image.to(device), label.to(device)
