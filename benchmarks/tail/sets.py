"""Long-tailed sets as fixed features: photos through a frozen MobileNetV2, or points drawn in a second."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

import pixels
from models.errors import ManifestError
from models.networks.network import Network, build_network
from models.recipe.config import Member

SIDE = 128  # pixels
BATCH = 64


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """Samples of three splits.

    views: (2, N, d) features of each sample and of its mirror image. target: (N,) class of the given label. true: (N,) class of the
    true label, or None if it is unknown. split: (N,) train, val or test.
    """

    name: str
    views: Tensor
    target: NDArray[np.int64]
    true: NDArray[np.int64] | None
    split: NDArray[np.str_]
    num_classes: int

    def rows(self, split: str) -> NDArray[np.int64]:
        """Positions of the samples of a split."""
        return np.flatnonzero(self.split == split)

    @property
    def counts(self) -> NDArray[np.int64]:
        """(C,) training samples per class of the labels that are learnt."""
        return np.bincount(self.target[self.rows("train")], minlength=self.num_classes)


def read_set(folder: Path, manifest: str, *, truth: Path | None, weights: Path, cache: Path) -> FeatureSet:
    """Photos of folder/<manifest>.parquet with the columns path, label, split.

    Args:
        truth: a Parquet file with the columns path and label, whose file names are those of the manifest.
        weights: file of timm's mobilenetv2_100.
        cache: folder in which features are kept.

    Raises:
        ManifestError: no such manifest, or a photo without a known true label.
        WeightsMismatch: no such weights, or weights of another network.
    """
    path = folder / f"{manifest}.parquet"
    if not path.is_file():
        raise ManifestError(f"--data: {path} does not exist; give a folder of manifests, and one of its names")
    table = pq.read_table(path, columns=["path", "label", "split"])
    paths, labels, split = (np.array(table[name].to_pylist()) for name in ("path", "label", "split"))
    classes = np.unique(labels)
    views = _features([folder / each for each in paths], weights=weights, cache=cache)
    true = None if truth is None else np.searchsorted(classes, _true_labels(truth, paths))
    return FeatureSet(name=manifest, views=views, target=np.searchsorted(classes, labels), true=true, split=split,
                      num_classes=len(classes))  # fmt: skip


def _true_labels(truth: Path, paths: NDArray[np.str_]) -> list[str]:
    table = pq.read_table(truth, columns=["path", "label"])
    names = [Path(path).name for path in table["path"].to_pylist()]
    known = dict(zip(names, table["label"].to_pylist(), strict=True))
    unknown = [path for path in paths if Path(path).name not in known]
    if unknown:
        raise ManifestError(f"--truth: {truth} knows no label of {unknown[0]} and {len(unknown) - 1} others; add them")
    return [known[Path(path).name] for path in paths]


def _features(paths: list[Path], *, weights: Path, cache: Path) -> Tensor:
    """Features (2, N, 1280), read from `cache` if they are there; photos are identified by their paths."""
    network = frozen(weights)
    key = hashlib.sha256(weights.read_bytes() + "\n".join(map(str, paths)).encode()).hexdigest()[:16]
    file = cache / f"features-{key}.pt"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        torch.save(_asked(network, paths), part)
        part.replace(file)
    found: Tensor = torch.load(file, weights_only=True)
    return found


def frozen(weights: Path) -> Network:
    """MobileNetV2 with weights of timm's mobilenetv2_100."""
    member = Member(backbone="mobilenetv2_100", size=SIDE, weights=str(weights), args={"pad_type": "same"},
                    mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # fmt: skip
    return build_network(member, num_classes=2).eval()


def _asked(network: Network, paths: list[Path]) -> Tensor:
    found = []
    for start in range(0, len(paths), BATCH):
        squares = [pixels.to_square(pixels.decode(path.read_bytes()), SIDE) for path in paths[start : start + BATCH]]
        found.append(features_of(network, torch.from_numpy(np.stack(squares))))
    return torch.cat(found, 1)


@torch.inference_mode()
def features_of(network: Network, image: Tensor) -> Tensor:
    """Features (2, n, 1280) of (n, SIDE, SIDE, 3) uint8 photos and of their mirror images."""
    batches = [each.permute(0, 3, 1, 2).float() / 255 for each in image.split(BATCH)]
    return torch.cat(
        [torch.stack([network.features(each), network.features(each.flip(3))]) for each in batches], 1
    ).clone()


def drawn_set(
    *, num_classes: int = 30, imbalance: float = 50.0, largest: int = 100, noise: float = 0.2, seed: int = 0
) -> FeatureSet:
    """Clusters around centres of which neighbours resemble each other: 100 ... 2 training points a class, 20 % wrong labels.

    A wrong label is the neighbour's. Validation and test points, 10 and 40 a class, have their own label.
    """
    draw = np.random.default_rng(seed)
    counts = np.round(largest * imbalance ** (-np.arange(num_classes) / (num_classes - 1))).astype(int)
    family = np.repeat(draw.normal(size=(num_classes // 2, 24)), 2, axis=0)
    centres = family + 0.7 * draw.normal(size=(num_classes, 24))
    true = np.concatenate([np.repeat(np.arange(num_classes), n) for n in (counts, 10, 40)])
    split = np.repeat(["train", "val", "test"], [counts.sum(), 10 * num_classes, 40 * num_classes])
    views = centres[true] + 0.9 * draw.normal(size=(2, len(true), 24))
    wrong = (split == "train") & (draw.random(len(true)) < noise) & (np.append(counts, 0)[true] > 2)
    return FeatureSet(name="drawn clusters", views=torch.from_numpy(views).float(), target=np.where(wrong, true ^ 1, true),
                      true=true, split=split, num_classes=num_classes)  # fmt: skip
