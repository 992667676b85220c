"""Photos as fixed features at several sizes and in several crops, computed once; or points drawn in a second."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow.parquet as pq
import torch
from noisy.features import BATCH, member_of
from numpy.typing import NDArray
from tail.sets import FeatureSet, drawn_set
from torch import Tensor

import pixels
from models.errors import ManifestError
from models.export.graph import crop_boxes
from models.networks.network import Network, build_network

SIZES = (128, 160, 192)  # pixels; the first is the reference
LARGE = (224,)  # of photos that come from a larger source
CLEAN = "clean"  # name of the set with the true labels
ENLARGE, CROPS = 1.25, 10


class Camera(Protocol):
    """Returns features (K, n, d) of K crops of each photo, cut from the photo enlarged to `full` pixels a side; and CPU seconds."""

    def __call__(self, rows: NDArray[np.int64], *, size: int, crops: int) -> tuple[Tensor, float]: ...


@dataclass(frozen=True)
class Shelf:
    """A data set in any size; `seconds` by (size, crops) is what features cost if no cache has them. kind: of camera."""

    name: str
    target: NDArray[np.int64]
    split: NDArray[np.str_]
    num_classes: int
    camera: Camera
    kind: str = ""
    sizes: tuple[int, ...] = SIZES
    seconds: dict[tuple[int, int], float] = field(default_factory=dict)

    def at(self, size: int) -> FeatureSet:
        """All photos and their mirror images, whole.

        Computed split by split, as several sets share their validation and test photos.
        """
        rows = [np.flatnonzero(self.split == split) for split in ("train", "val", "test")]
        self.seconds[size, 2] = 0.0
        views = torch.cat([self._features(each, size=size, crops=2) for each in rows], 1)
        views = views[:, torch.from_numpy(np.argsort(np.concatenate(rows)))]
        return FeatureSet(name=self.name, views=views, target=self.target, true=None, split=self.split,
                          num_classes=self.num_classes)  # fmt: skip

    def crops(self, size: int) -> Tensor:
        """Features (CROPS, n, d) of the test photos, enlarged."""
        self.seconds[size, CROPS] = 0.0
        return self._features(np.flatnonzero(self.split == "test"), size=size, crops=CROPS)

    def _features(self, rows: NDArray[np.int64], *, size: int, crops: int) -> Tensor:
        found, seconds = self.camera(rows, size=size, crops=crops)
        self.seconds[size, crops] += seconds
        return found


class Backbone:
    """A frozen network that reads files; features lie in a cache folder, each with its seconds."""

    def __init__(self, files: Sequence[Path], *, weights: Path, cache: Path) -> None:
        self.files, self.weights, self.cache = files, weights, cache
        self.digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else ""

    def __call__(self, rows: NDArray[np.int64], *, size: int, crops: int) -> tuple[Tensor, float]:
        order = np.argsort([str(self.files[row]) for row in rows])
        files = [self.files[row] for row in rows[order]]
        key = hashlib.sha256("\n".join([self.digest, f"{size} {crops}", *map(str, files)]).encode()).hexdigest()[:16]
        path = self.cache / f"looks-{key}.pt"
        if not path.exists():
            self.cache.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            network = build_network(member_of(self.weights, size), num_classes=2).eval()
            torch.save(_features_of(network, files, size=size, crops=crops), part)
            part.replace(path)
        features, seconds = torch.load(path, weights_only=True)
        return features[:, torch.from_numpy(np.argsort(order))], seconds


@torch.inference_mode()
def _features_of(network: Network, files: Sequence[Path], *, size: int, crops: int) -> tuple[Tensor, float]:
    """Features of the crops that `models.export.graph.Branch` cuts; two crops are the whole photo and its mirror image."""
    full = round(size * ENLARGE) if crops > 2 else size
    boxes, found, start = crop_boxes(full, size, crops), [], time.process_time()
    for first in range(0, len(files), BATCH):
        squares = [pixels.to_square(pixels.decode(file.read_bytes()), full) for file in files[first : first + BATCH]]
        photo = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 255
        cuts = [photo[:, :, top : top + size, left : left + size] for top, left, _ in boxes]
        found.append(torch.stack([network.features(cut.flip(3) if mirrored else cut)
                                  for cut, (_, _, mirrored) in zip(cuts, boxes, strict=True)]))  # fmt: skip
    return torch.cat(found, 1), time.process_time() - start


def read_shelves(
    folder: Path, names: Sequence[str], *, weights: Sequence[Path], cache: Path, truth: Path, large: Path | None = None
) -> Iterator[list[Shelf]]:
    """Yields a shelf for each of the weights, per manifest folder/<name>.parquet with the columns path, label and split.

    Test labels count as true. CLEAN is the manifest `truth` of the same photos, which lie in folder/images. large: another
    folder with photos, of 224 px; those that it lacks are read from `folder`.

    Raises:
        ManifestError: no such manifest.
    """
    for name in names:
        path = truth if name == CLEAN else folder / f"{name}.parquet"
        if not path.is_file():
            raise ManifestError(f"--data: {path} does not exist; give a folder of manifests, and --sets from its names")
        table = pq.read_table(path, columns=["path", "label", "split"])
        paths, labels, split = (np.array(table[column].to_pylist()) for column in ("path", "label", "split"))
        paths = [f"images/{Path(each).name}" if name == CLEAN else each for each in paths]
        files = [large / each if large and (large / each).is_file() else folder / each for each in paths]
        classes = np.unique(labels)
        yield [
            Shelf(
                name,
                np.searchsorted(classes, labels),
                split,
                len(classes),
                Backbone(files, weights=each, cache=cache),
                f"{each.stem} at {LARGE[0]} px" if large else "",
                LARGE if large else SIZES,
            )
            for each in weights
        ]


def drawn_shelf(photos: FeatureSet | None = None) -> Shelf:
    """Clusters of `tail.sets`; each size and each crop adds its own error to a point."""
    photos = photos or drawn_set()

    def camera(rows: NDArray[np.int64], *, size: int, crops: int) -> tuple[Tensor, float]:
        error = torch.randn(crops, *photos.views.shape[1:], generator=torch.Generator().manual_seed(size + crops))
        kept = photos.views if crops == 2 else photos.views[:1]
        return (kept + 0.2 * error)[:, torch.from_numpy(rows)], 0.0

    return Shelf(photos.name, photos.target, photos.split, photos.num_classes, camera)
