"""Review of a data version with 2.5 million photos and 50,030 classes: filters, pages, evidence and neighbours, in process.

The version is drawn: its tables are real, its photos are a few hundred real JPEGs that all rows share, and two folds have scored
it. `large_version` makes it for other benchmarks too.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from figure import figure, header
from PIL import Image, ImageDraw

from flows.data.shards import pack
from flows.data.versions import DataVersions
from flows.pages.site import Site
from flows.review.decisions import Decision
from flows.review.evidence import evidence
from flows.review.filters import SCOPES, Filter, Scope
from flows.review.neighbours import nearest
from flows.review.queue import Queue
from flows.workspace import Workspace
from models.data.manifest import CONFLICTS, INDEX, LABELS, QUARANTINE, write_version

CLAIM = "a filter of 2.5 million photos and the next twenty suspects with their evidence take at most 30 ms"
PHOTOS, CLASSES, FOLDS, KEPT, DIMENSIONS = 2_500_000, 50_030, 2, 10, 128
SUSPECT = 0.1  # share of training photos whose label is in doubt
DIFFERENT = 200  # photos that differ in their pixels
SIDE = 320  # px
SUPPLIERS = 40
TIMES = 15


def large_version(root: Path, photos: int = PHOTOS, classes: int = CLASSES) -> Workspace:
    """A workspace in `root` whose selected version has this many photos, scored by two folds; the same arguments draw the same.

    Class sizes fall with their rank; 90 % of the photos are for training, half of the others for validation. Of the training
    photos 10 % are label issues, and most of each class are taken for one other class.
    """
    workspace = Workspace.init(root)
    versions, draw = DataVersions(workspace), np.random.default_rng(0)
    ids = np.unique(draw.integers(0, 2**63, photos + photos // 1000, dtype=np.uint64))[:photos]
    ids = np.sort(draw.permutation(ids)[:photos])
    given = np.sort((draw.random(photos) ** 2 * classes).astype(np.int32))[draw.permutation(photos)]
    split = np.searchsorted([0.9, 0.95], draw.random(photos)).astype(np.int8)
    is_issue = (split == 0) & (draw.random(photos) < SUSPECT)
    other = ((given + 1 + (draw.random(photos) < 0.2)) % classes).astype(np.int32)
    folder = versions.new_folder()
    texts = pa.array([f"{id:016x}" for id in ids.tolist()], pa.string())
    fold = np.where(split == 0, draw.integers(0, FOLDS, photos), -1)
    _write_labels(folder, texts, given, other, split, is_issue, fold, names_of(classes), draw)
    _write_index(folder, texts, draw)
    for name, schema in (("conflicts", CONFLICTS), ("quarantine", QUARANTINE)):
        pq.write_table(schema.empty_table(), folder / f"{name}.parquet")
    write_version(folder, parent=None, step="clean-1")
    versions.commit(folder, step="clean-1", message=f"{int(is_issue.sum())} labels flagged")
    for number in range(FOLDS):
        rows = np.flatnonzero((fold == number) | (split == 1))
        _write_fold(
            workspace.runs / "stages" / name_of(number),
            texts.take(rows),
            given[rows],
            other[rows],
            is_issue[rows],
            classes,
        )
    return workspace


def names_of(classes: int) -> list[str]:
    """Sorted names of products."""
    kinds = ("Milk", "Soap", "Rice", "Salt", "Tea", "Coffee", "Bread", "Juice", "Oil", "Flour")
    return sorted(f"{kinds[i % len(kinds)]} No. {i:05d} {100 + i % 9 * 100} g" for i in range(classes))


def name_of(fold: int) -> str:
    """Folder of a fold's results."""
    return f"fold-{fold}-drawn"


def _write_labels(folder: Path, ids: pa.Array, given: Any, other: Any, split: Any, is_issue: Any, fold: Any, names: list[str],
                  draw: np.random.Generator) -> None:  # fmt: skip
    photos, which = len(given), draw.integers(0, 3, len(given))
    score = np.where(is_issue, 0.5 * draw.random(photos), 0.5 + 0.5 * draw.random(photos)).astype(np.float32)
    scored_by = np.where(fold >= 0, fold, np.where(split == 1, FOLDS, FOLDS + 1))
    columns = {
        "id": ids,
        "given_label": _texts(given, names),
        "label": _texts(np.where(is_issue & (which == 2), other, given), names),
        "split": _texts(split, ["train", "val", "test"]),
        "kept": ~(is_issue & (which == 0)),
        "decision": _texts(np.where(is_issue, which + 1, 0), ["", "dropped", "doubted", "relabelled"]),
        "score": pa.array(score, mask=split == 2),
        "round": np.where(split < 2, 1, 0).astype(np.int8),
        "scored_by": _texts(scored_by, [*map(name_of, range(FOLDS)), " ".join(map(name_of, range(FOLDS))), ""]),
    }
    pq.write_table(pa.table(columns, schema=LABELS), folder / "labels.parquet", compression="zstd")


def _write_index(folder: Path, ids: pa.Array, draw: np.random.Generator) -> None:
    packed = pack(((f"{each:016x}", _photo(each)) for each in range(DIFFERENT)), folder=folder / "shards")
    number = draw.integers(0, DIFFERENT, len(ids))
    columns = {
        "id": ids,
        "sha256": pc.binary_join_element_wise(ids, "0" * 48, ""),
        "shard": _texts(packed.shard[number], [*packed.shards]),
        "offset": packed.offset[number],
        "size": packed.size[number],
        "width": np.full(len(ids), SIDE, np.int32),
        "height": np.full(len(ids), SIDE, np.int32),
        "source": _texts(draw.integers(0, SUPPLIERS, len(ids)), [f"supplier {i}" for i in range(SUPPLIERS)]),
        "path": _texts(number, [f"{i}.jpg" for i in range(DIFFERENT)]),
    }
    pq.write_table(pa.table(columns, schema=INDEX), folder / "index.parquet", compression="zstd")


def _texts(codes: Any, values: list[str]) -> pa.Array:
    """A column of texts from their positions in `values`."""
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(values, pa.string())).cast(pa.string())


def _photo(number: int) -> bytes:
    draw = np.random.default_rng(number)
    image = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    ImageDraw.Draw(image).text((SIDE // 4, SIDE // 3), str(number), fill="white", font_size=SIDE // 4)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def _write_fold(
    folder: Path, ids: pa.Array, given: Any, other: Any, is_issue: Any, classes: int, dimensions: int = DIMENSIONS
) -> None:
    """Scores of a fold in its format, and vectors of a frozen backbone."""
    draw, count = np.random.default_rng(len(ids)), len(ids)
    top = ((given[:, None] + np.arange(KEPT, dtype=np.int32) * 7) % classes).astype(np.int32)
    top[:, 1] = other
    top[is_issue, 0], top[is_issue, 1] = other[is_issue], given[is_issue]
    probs = np.sort(draw.random((count, KEPT), np.float32), axis=1)[:, ::-1]
    probs = np.ascontiguousarray(probs / probs.sum(axis=1, keepdims=True))
    folder.mkdir(parents=True)
    columns = {
        "id": ids,
        "target": given,
        "p_label": np.where(is_issue, probs[:, 1], probs[:, 0]),
        "top": pa.FixedSizeListArray.from_arrays(pa.array(top.ravel()), KEPT),
        "probs": pa.FixedSizeListArray.from_arrays(pa.array(probs.ravel()), KEPT),
    }
    pq.write_table(pa.table(columns), folder / "scores.parquet", compression="zstd")
    vectors = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float16, (count, dimensions))
    for start in range(0, count, 65_536):
        shape = vectors[start : start + 65_536].shape
        vectors[start : start + 65_536] = draw.standard_normal(shape, np.float32)
    vectors.flush()


def milliseconds(work: Callable[[int], object]) -> float:
    """95th percentile of the time of one call, over TIMES calls that each get another number."""
    spent = []
    for number in range(TIMES):
        began = time.perf_counter()
        work(number)
        spent.append(1000 * (time.perf_counter() - began))
    return round(float(np.percentile(spent, 95)), 1)


def measure(site: Site, queue: Queue) -> None:
    """Prints the figures of the review."""
    names, decisions = queue.photos.classes, site.decisions
    photos = [queue.photos.name(row) for row in range(TIMES)]

    def told(name: str, work: Callable[[int], object], *, target: float = 30) -> None:
        value = milliseconds(work)
        figure(f"{name}, p95 ms", value, target=f"<= {target:g}", met=value <= target, baseline=None)

    def next_photos(number: int) -> object:
        wanted = Filter()
        ranks = queue.page(wanted, "open", after=20 * number)
        return evidence(queue, decisions, queue.ranked["issues"].rows[ranks], scope="issues", seen=0)

    def decide(number: int) -> object:
        decisions.add([Decision(photos[number], "keep", names[0], "Ana", queue.photos.version)], seen=0)
        return queue.refresh(decisions)

    def told_of(scope: Scope) -> None:
        some = Filter(scope=scope)
        told(f"new filter of {scope} by label", lambda i: queue.progress(Filter(scope=scope, given=names[9 * i])))
        told(f"new filter of {scope} by score", lambda i: queue.progress(Filter(scope=scope, above=0.01 * i)))
        told(f"progress of {scope}", lambda i: queue.progress(some))
        told(f"mix-ups with most photos left of {scope}", lambda i: queue.confusions(some))

    for scope in SCOPES:
        told_of(scope)
    told("next 20 suspects with their evidence", next_photos)
    told(
        "search for a class by a part of its name",
        lambda i: queue.products.search(f"No. {i:03d}", likely=np.zeros(0, np.int32)),
    )
    told("a decision on disk and in the queue", decide)
    rows = queue.ranked["issues"].rows
    told(
        "nearest neighbours of a suspect", lambda i: nearest(queue.photos, queue.suggestions, int(rows[i])), target=200
    )


def main() -> None:
    """Draws the version and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=PHOTOS)
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--keep", type=Path, help="draw the workspace here and leave it; take it again if it is there")
    arguments = parser.parse_args()
    header(CLAIM)
    with TemporaryDirectory() as folder:
        root = arguments.keep or Path(folder) / "shop"
        workspace = Workspace.find(root) if root.exists() else large_version(root, arguments.photos, arguments.classes)
        site = Site(workspace)
        began = time.perf_counter()
        photos = site.photos("selected")
        read_s = time.perf_counter() - began
        queue = site.queue(photos.version)
        queue_s = time.perf_counter() - began - read_s
        figure("photos of the version read, s", round(read_s, 1), target="told", met=True, baseline=None)
        figure("suggestions read and sorted, s", round(queue_s, 1), target="told", met=True, baseline=None)
        measure(site, queue)


if __name__ == "__main__":
    main()
