"""Deliveries of sample photos with planted faults, and the truth about them for measurements.

The truth is kept apart from the delivery: cleaning has to find the faults without it.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flows.errors import InputError
from flows.sample.draw import draw, draw_non_product
from flows.sample.families import Sku, assortment

Part = Literal["stock", "delivery"]
Kind = Literal["clean", "flipped", "non-product", "duplicate", "conflict", "corrupt"]
Truth: TypeAlias = pa.Table

HEAD, TAIL = 60, 4  # train photos of the most frequent and the rarest product in the stock
TEST_PHOTOS = 10  # per product
FLIPPED = 0.25  # share of train photos under a sibling's label
TRUTH_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("sha256", "id", "given_label", "true_label", "kind", "split")]
)

__all__ = ["TRUTH_SCHEMA", "Kind", "Part", "Truth", "deliver", "read_truth", "write_truth"]

_SOURCES = ("northern wholesale", "shop scanner", "web catalogue")
_SERIALS = {"stock": 0, "delivery": 100_000}  # first serials; a photo depends on (seed, serial) alone


@dataclass(frozen=True)
class _Item:
    """One photo of a delivery before it is drawn; sku is None if it shows no product."""

    serial: int
    sku: Sku | None
    given_label: str
    kind: Kind
    split: Literal["train", "test"] = "train"


def deliver(folder: Path, *, seed: int = 7, part: Part) -> Truth:
    """Writes photos and `manifest.csv` (path, label, split, source) to an empty folder; returns the truth about them.

    "stock" is the first delivery: about 520 train photos in a long tail, a clean test split, a quarter of the train
    labels flipped within the family, duplicates, conflicts, non-products and corrupt files; at most 5 MB. "delivery" is
    a later week: about 60 train photos with the same kinds of faults, and no test photos. The same seed gives the same
    bytes on one machine; another version of Pillow may draw and compress differently.

    Returns:
        One row per delivered file, columns as in TRUTH_SCHEMA. id is the first 16 hex digits of sha256; a duplicate
        shares it with its original, and both files of a conflict share it. true_label is "" for non-products. kind
        "corrupt" is any file that cannot be ingested, including an intact photo without a label. split "train" means
        not test; the manifest leaves it blank.

    Raises:
        InputError: `folder` is a file, or not empty.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder}: not an empty folder; choose a new one for the sample delivery")
    rng = np.random.default_rng([seed, _SERIALS[part]])
    items = _plan_stock(rng) if part == "stock" else _plan_delivery(rng, _plan_stock(np.random.default_rng([seed, 0])))
    items = [items[i] for i in rng.permutation(len(items))]
    paths = _paths(len(items), rng)
    rows, truth = [], []
    for item, path in zip(items, paths, strict=True):
        data = _photo_bytes(item, seed=seed)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
        rows.append((path, item.given_label, "test" if item.split == "test" else "", str(rng.choice(_SOURCES))))
        truth.append(_truth_row(item, data))
    rows.append(("photos/IMG_0000.jpg", assortment()[0].label, "", _SOURCES[0]))  # a row without a file
    _write_manifest(folder / "manifest.csv", rows)
    return pa.Table.from_pylist(truth, schema=TRUTH_SCHEMA)


def write_truth(truth: Truth, path: Path) -> None:
    """Writes the truth as Parquet, outside the delivery."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(truth, path, compression="zstd")


def read_truth(path: Path) -> Truth:
    """The truth that `write_truth` wrote.

    Raises:
        InputError: there is no such file, or it is not a truth table.
    """
    try:
        return pq.read_table(path).select(TRUTH_SCHEMA.names).cast(TRUTH_SCHEMA)
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise InputError(
            f"{path}: not a truth table of the sample ({error}); write the sample delivery again"
        ) from None


def _plan_stock(rng: np.random.Generator) -> list[_Item]:
    """Photos of the stock, in the order of their serials."""
    skus = assortment()
    counts = rng.permutation(_long_tail(len(skus)))
    serials = iter(range(_SERIALS["stock"], _SERIALS["delivery"]))
    train = [_clean(next(serials), sku) for sku, count in zip(skus, counts, strict=True) for _ in range(count)]
    train = _flip(train, rng)
    test = [replace(_clean(next(serials), sku), split="test") for sku in skus for _ in range(TEST_PHOTOS)]
    copies = [replace(train[i], kind="duplicate") for i in rng.choice(len(train), 6, replace=False)]
    conflicts = [item for sku in _choose(skus, 3, rng) for item in _conflict(next(serials), sku, rng)]
    others = [_Item(next(serials), None, sku.label, "non-product") for sku in _choose(skus, 12, rng)]
    broken = [replace(_clean(next(serials), sku), kind="corrupt") for sku in _choose(skus, 4, rng)]
    return [*train, *test, *copies, *conflicts, *others, *broken[:3], replace(broken[3], given_label="")]


def _plan_delivery(rng: np.random.Generator, stock: list[_Item]) -> list[_Item]:
    """Photos of a later delivery, three of which are in the stock already."""
    skus = assortment()
    serials = iter(range(_SERIALS["delivery"], 2 * _SERIALS["delivery"]))
    train = _flip([_clean(next(serials), sku) for sku in (*skus, *skus, *_choose(skus, 4, rng))], rng)
    known = [item for item in stock if item.kind == "clean" and item.split == "train"]
    copies = [replace(known[i], kind="duplicate") for i in rng.choice(len(known), 3, replace=False)]
    others = [_Item(next(serials), None, sku.label, "non-product") for sku in _choose(skus, 2, rng)]
    broken = [replace(_clean(next(serials), sku), kind="corrupt") for sku in _choose(skus, 2, rng)]
    return [*train, *copies, *others, *broken]


def _long_tail(num_skus: int) -> list[int]:
    """Train photos per product, from HEAD down to TAIL, slightly faster than a geometric series."""
    rank = np.linspace(0, 1, num_skus) ** 0.8
    return [int(count) for count in np.rint(HEAD * (TAIL / HEAD) ** rank)]


def _clean(serial: int, sku: Sku) -> _Item:
    return _Item(serial, sku, sku.label, "clean")


def _choose(skus: tuple[Sku, ...], count: int, rng: np.random.Generator) -> list[Sku]:
    """Chooses `count` different products."""
    return [skus[i] for i in rng.choice(len(skus), count, replace=False)]


def _siblings(sku: Sku) -> list[Sku]:
    """Other products of the family."""
    return [other for other in assortment() if other.family == sku.family and other != sku]


def _flip(items: list[_Item], rng: np.random.Generator) -> list[_Item]:
    """Gives a quarter of the photos the label of a sibling.

    A product loses at most a third of its photos (one, if it has fewer than 6) and gains at most half their number. So
    under every label of the stock the product's own photos stay the majority; otherwise no method could find the flips.
    """
    counts = Counter(item.given_label for item in items)
    may_lose = {label: max(1, count // 3) if count >= 6 else 1 for label, count in counts.items()}
    may_gain = {label: count // 2 for label, count in counts.items()}
    flipped, left = list(items), round(FLIPPED * len(items))
    for i in rng.permutation(len(items)):
        own, sku = items[i].given_label, items[i].sku
        assert sku is not None
        room = np.array([may_gain[sibling.label] for sibling in _siblings(sku)])
        if left == 0 or may_lose[own] == 0 or room.sum() == 0:
            continue
        label = _siblings(sku)[int(rng.choice(len(room), p=room / room.sum()))].label
        flipped[i] = replace(items[i], given_label=label, kind="flipped")
        may_lose[own], may_gain[label], left = may_lose[own] - 1, may_gain[label] - 1, left - 1
    return flipped


def _conflict(serial: int, sku: Sku, rng: np.random.Generator) -> list[_Item]:
    """A photo delivered twice, once under a sibling's label."""
    siblings = _siblings(sku)
    sibling = siblings[int(rng.integers(len(siblings)))]
    return [_Item(serial, sku, label, "conflict") for label in (sku.label, sibling.label)]


def _photo_bytes(item: _Item, *, seed: int) -> bytes:
    """File of a photo: a JPEG of about 5 KB, or a corrupt file."""
    rng = np.random.default_rng([seed, item.serial])
    photo = draw_non_product(rng) if item.sku is None else draw(item.sku, rng)
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=82, optimize=True)
    if item.kind != "corrupt" or not item.given_label:
        return buffer.getvalue()
    corrupt = (buffer.getvalue()[: buffer.tell() // 2], b"", b"Photo not available, please ask the warehouse.\n")
    return corrupt[item.serial % 3]


def _paths(count: int, rng: np.random.Generator) -> Iterator[str]:
    """File names as cameras and people give them, which do not reveal the label."""
    odd = ("IMG {} (copy).jpg", "it's {}.jpg", 'the "{}".jpg', "größe {}.JPG", "写真 {}.jpeg", "a,b;{}.jpg")
    for i, number in enumerate(rng.permutation(np.arange(1, 10_000))[:count]):
        name = odd[i // 12 % len(odd)] if i % 12 == 0 else "IMG_{}.jpg"
        yield f"photos/{name.format(f'{number:04d}')}"


def _truth_row(item: _Item, data: bytes) -> dict[str, str]:
    sha256 = hashlib.sha256(data).hexdigest()
    true_label = item.sku.label if item.sku else ""
    values = (sha256, sha256[:16], item.given_label, true_label, item.kind, item.split)
    return dict(zip(TRUTH_SCHEMA.names, values, strict=True))


def _write_manifest(path: Path, rows: list[tuple[str, str, str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "label", "split", "source"))
        writer.writerows(rows)
