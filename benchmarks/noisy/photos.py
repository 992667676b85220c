"""Data sets as 32 px RGB arrays: read from a folder, or drawn.

Two folders are understood:

CIFAR-10, with human labels (CIFAR-10N) where there are any
    cifar10_jpeg.parquet    index, split (train / test), label (0..9), label_name, jpeg (bytes)
    manifest.parquet        index, human_aggre, human_worst, ... (-1 on test); only for --noise human:...
Fashion-MNIST
    images_uint8.npz        images (N, 28, 28) uint8, labels (N,), is_test (N,) bool
    manifest.parquet        row, label, label_name
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from models.errors import ManifestError

SIDE = 32
SUBSET_SEED = 0


@dataclass(frozen=True, kw_only=True)
class PhotoSet:
    """Training and test photos, (N, 32, 32, 3) uint8, with true labels (N,) and the labels that people gave."""

    name: str
    classes: tuple[str, ...]
    photos: NDArray[np.uint8]
    label: NDArray[np.int64]
    test_photos: NDArray[np.uint8]
    test_label: NDArray[np.int64]
    human: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)

    def human_labels(self, column: str) -> NDArray[np.int64]:
        """(N,) labels by people; ManifestError if the data has none of that name."""
        if column not in self.human:
            known = ", ".join(self.human) or "none"
            raise ManifestError(
                f"--noise human:{column}: {self.name} has no column human_{column} in manifest.parquet "
                f"(it has {known}); name one of these or take data with human labels"
            )
        return self.human[column]

    def subset(self, *, num_train: int, num_test: int) -> PhotoSet:
        """Photos with the same share of every class, always the same ones; 0 takes all, and so does more than there are."""
        train, test = stratified(self.label, num_train), stratified(self.test_label, num_test)
        return replace(self, photos=self.photos[train], label=self.label[train],
                       test_photos=self.test_photos[test], test_label=self.test_label[test],
                       human={name: given[train] for name, given in self.human.items()})  # fmt: skip


def stratified(label: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Sorted positions of about `count` samples, each class in its share."""
    if count == 0 or count >= len(label):
        return np.arange(len(label))
    draw = np.random.RandomState(SUBSET_SEED)
    share = count / len(label)
    chosen = [draw.permutation(np.flatnonzero(label == k)) for k in np.unique(label)]
    return np.sort(np.concatenate([of_class[: max(round(share * len(of_class)), 1)] for of_class in chosen]))


def read_photo_set(folder: Path) -> PhotoSet:
    """CIFAR-10 or Fashion-MNIST, by the files in the folder.

    Raises:
        ManifestError: the folder has neither layout, a column is missing, or a photo is not 32 px.
    """
    if (folder / "cifar10_jpeg.parquet").is_file():
        return _cifar10(folder)
    if (folder / "images_uint8.npz").is_file():
        return _fashion_mnist(folder)
    raise ManifestError(
        f"--data: {folder} holds neither cifar10_jpeg.parquet (CIFAR-10) nor images_uint8.npz (Fashion-MNIST); "
        "benchmarks/noisy/photos.py describes both layouts"
    )


def _cifar10(folder: Path) -> PhotoSet:
    table = _read(folder / "cifar10_jpeg.parquet", "index", "split", "label", "label_name", "jpeg").sort_by("index")
    photos = np.stack([_decode(data, folder) for data in table["jpeg"].to_pylist()])
    train, label = table["split"].to_numpy() == "train", table["label"].to_numpy()
    manifest = folder / "manifest.parquet"
    people = pq.read_table(manifest).sort_by("index") if manifest.is_file() else pa.table({})
    columns = [name for name in people.column_names if name.startswith("human_")]
    if columns and not np.array_equal(people["index"].to_numpy(), table["index"].to_numpy()):
        raise ManifestError(f"{manifest}: index differs from that of cifar10_jpeg.parquet; take both of one delivery")
    human = {name.removeprefix("human_"): people[name].to_numpy()[train] for name in columns}
    return PhotoSet(name="cifar10", classes=_names(table), photos=photos[train], label=label[train],
                    test_photos=photos[~train], test_label=label[~train], human=human)  # fmt: skip


def _fashion_mnist(folder: Path) -> PhotoSet:
    path = folder / "images_uint8.npz"
    with np.load(path) as arrays:
        missing = {"images", "labels", "is_test"} - set(arrays)
        if missing:
            raise ManifestError(
                f"{path}: lacks {', '.join(sorted(missing))}; benchmarks/noisy/photos.py says what it holds"
            )
        images, label, test = arrays["images"], arrays["labels"].astype(np.int64), arrays["is_test"]
    if images.shape[1:] != (28, 28) or images.dtype != np.uint8:
        raise ManifestError(f"{path}: images is {images.dtype} {images.shape}, want uint8 (N, 28, 28); convert it")
    rim = (SIDE - 28) // 2
    photos = np.pad(images, ((0, 0), (rim, rim), (rim, rim)))[..., None].repeat(3, axis=3)
    classes = _names(_read(folder / "manifest.parquet", "label", "label_name"))
    return PhotoSet(name="fashion_mnist", classes=classes, photos=photos[~test], label=label[~test],
                    test_photos=photos[test], test_label=label[test])  # fmt: skip


def _read(path: Path, *columns: str) -> pa.Table:
    if not path.is_file():
        raise ManifestError(f"--data: {path} is missing; benchmarks/noisy/photos.py says which files are needed")
    missing = set(columns) - set(pq.read_schema(path).names)
    if missing:
        raise ManifestError(f"{path}: lacks the columns {', '.join(sorted(missing))}; deliver it with them")
    return pq.read_table(path, columns=list(columns))


def _names(table: pa.Table) -> tuple[str, ...]:
    """Name of each label, 0 first."""
    pairs = table.select(["label", "label_name"]).group_by(["label", "label_name"]).aggregate([]).sort_by("label")
    return tuple(pairs["label_name"].to_pylist())


def _decode(data: bytes, folder: Path) -> NDArray[np.uint8]:
    photo = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    if photo.shape != (SIDE, SIDE, 3):
        raise ManifestError(
            f"{folder}: a photo is {photo.shape[1]} x {photo.shape[0]}, want {SIDE} x {SIDE}; resize it"
        )
    return photo
