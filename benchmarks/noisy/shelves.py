"""Sets of photos with right and wrong labels, as fixed features: groceries, CIFAR-10, garments, drawn clusters."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from models.networks.network import best_device
from noisy.features import cached_features
from noisy.photos import read_photo_set, stratified
from noisy.spec import parse_noise
from pixels import decode, to_square

PHOTO_PX, LARGE_PX, SMALL_PX = 128, 224, 160  # of groceries, of the same from a larger source, of photos of 32 px
SETS = ("sym40", "fine30", "instance35", "longtail50-fine30", "outofset10", "clean")
GARMENTS = ("symmetric:0.4", "pair:0.3", "clean")
NO_CLASS = -1  # true label of a picture of no product
TEST_SHARE = 5  # training photos of a set at SMALL_PX for each of its test photos

Views = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Shelf:
    """Photos with given and true labels (N,), and of each encoder the features (N, d) of two views, the second mirrored.

    kind: what is looked at, and how, for the names of figures; names: of the classes, if these have any. test: features (n, d) of
    other photos by the first encoder, the sum of both views, and their true labels.
    """

    name: str
    given: NDArray[np.int64]
    true: NDArray[np.int64]
    encoders: tuple[Views, ...]
    kind: str = "drawn"
    targets: Mapping[str, int] = field(default_factory=dict)
    names: tuple[str, ...] | None = None
    test: tuple[NDArray[np.float32], NDArray[np.int64]] | None = None

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """(N,) true where the given label is wrong."""
        return self.given != self.true

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.names) if self.names else int(max(self.given.max(), self.true.max())) + 1


def planted(
    args: argparse.Namespace, photos: Path, weights: Sequence[Path], px: int, kind: str, targets: Mapping[str, int]
) -> Iterator[Shelf]:
    """Yields every set of --data, seen by some encoders; features are computed once and kept.

    Pictures of no product are those that --truth does not list; they are read from --data.
    """
    truth = pq.read_table(args.truth or args.data.parent / "grocery" / "manifest.parquet").to_pylist()
    true = {Path(row["path"]).name: row["label"] for row in truth}
    train, test = ([Path(row["path"]).name for row in truth if row["split"] == split] for split in ("train", "test"))
    sets = {name: {file: true[file] for file in train} if name == "clean" else read_given(args.data, name)
            for name in args.sets}  # fmt: skip
    products, others = sorted(true), sorted(set().union(*sets.values()) - set(true))
    parts = [squares(photos, products, px)] + ([squares(args.data, others, px)] if others else [])
    encoders = [joined([seen(part, file, px=px, cache=args.cache) for part in parts]) for file in weights]
    number = {label: number for number, label in enumerate(sorted(set(true.values())))}
    row = {file: row for row, file in enumerate(products + others)}
    rows = [row[file] for file in test]
    asked = encoders[0][0][rows] + encoders[0][1][rows], np.array([number[true[file]] for file in test])
    for name, given in sets.items():
        rows = [row[file] for file in given]
        yield Shelf(
            name,
            np.array([number[label] for label in given.values()]),
            np.array([number[true[file]] if file in true else NO_CLASS for file in given]),
            tuple((plain[rows], mirrored[rows]) for plain, mirrored in encoders),
            kind,
            targets,
            tuple(number),
            asked,
        )


def read_given(data: Path, name: str) -> dict[str, str]:
    """Given label of each training photo, by file name."""
    table = pq.read_table(data / f"{name}.parquet", filters=[("split", "=", "train")]).to_pydict()
    return {Path(path).name: label for path, label in zip(table["path"], table["label"], strict=True)}


def squares(folder: Path, names: Sequence[str], px: int) -> NDArray[np.uint8]:
    """(N, px, px, 3) photos of folder/images."""
    return np.stack([to_square(decode((folder / "images" / name).read_bytes()), px) for name in names])


def joined(parts: Sequence[Views]) -> Views:
    """Views of all parts, one after another."""
    plain, mirrored = (np.concatenate(part) for part in zip(*parts, strict=True))
    return plain, mirrored


def human(args: argparse.Namespace, names: Sequence[str]) -> Iterator[Shelf]:
    """Yields the first --photos of CIFAR-10 with columns of human labels; clean: with the true ones."""
    photos = read_photo_set(args.human)
    given = {name: photos.label if name == "clean" else photos.human_labels(name) for name in names}
    yield from small(args, args.human, given, np.arange(min(args.photos, len(photos.label))), "CIFAR-10")


def garments(args: argparse.Namespace) -> Iterator[Shelf]:
    """Yields --photos of Fashion-MNIST, each class in its share, with noise of models/data/noise.py on all of its labels."""
    photos = read_photo_set(args.garments)
    given = {name: parse_noise(name).given_labels(photos) for name in GARMENTS}
    yield from small(args, args.garments, given, stratified(photos.label, args.photos), "garments")


def small(
    args: argparse.Namespace, folder: Path, given: Mapping[str, NDArray[np.int64]], rows: NDArray[np.int64], kind: str
) -> Iterator[Shelf]:
    """Yields rows of the photos of 32 px in a folder, with each kind of given labels (of all rows)."""
    photos = read_photo_set(folder)
    views = seen(photos.photos[rows], args.weights, px=SMALL_PX, cache=args.cache)
    test = stratified(photos.test_label, max(1, len(rows) // TEST_SHARE))
    asked = seen(photos.test_photos[test], args.weights, px=SMALL_PX, cache=args.cache)
    for name, labels in given.items():
        yield Shelf(name, labels[rows], photos.label[rows], (views,), kind, test=(sum(asked), photos.test_label[test]))


def seen(photos: NDArray[np.uint8], weights: Path, *, px: int, cache: Path) -> Views:
    """Features of photos as they are and mirrored."""
    plain, mirrored = (cached_features(view, weights=weights, photo_px=px, cache=cache, device=best_device())
                       for view in (photos, np.ascontiguousarray(photos[:, :, ::-1])))  # fmt: skip
    return plain, mirrored


def drawn() -> Iterator[Shelf]:
    """Clusters in pairs of siblings: errors at random, inside the pairs, where the truth is unsure, and on a long tail."""
    draw = np.random.default_rng(0)
    centres = np.repeat(draw.standard_normal((10, 64)), 2, axis=0) + 0.5 * draw.standard_normal((20, 64))
    label = np.arange(400) % 20
    test = (2 * centres[label] + 0.9 * np.random.default_rng(1).standard_normal((2, 400, 64)).sum(0)).astype(np.float32)
    for name, size in (("random", 60), ("siblings", 60), ("unsure", 60), ("tail", 0)):
        counts = np.full(20, size) if size else np.rint(80 * 40.0 ** (-np.arange(20) / 19)).astype(int)
        true = np.repeat(np.arange(20), counts)
        features = (centres[true] + 0.9 * draw.standard_normal((len(true), 64))).astype(np.float32)
        given = true.copy()
        moved = draw.random(len(true)) < (0.4 if name == "random" else 0.3)
        if name == "unsure":
            cosine = features @ centres.T
            moved = np.argsort(np.argsort(cosine[np.arange(len(true)), true] - cosine[np.arange(len(true)), true ^ 1]))
            moved = moved < 0.3 * len(true)
        given[moved] = (true[moved] + draw.integers(1, 20, moved.sum())) % 20 if name == "random" else true[moved] ^ 1
        yield Shelf(name, given, true, ((features, features),), test=(test, label))
