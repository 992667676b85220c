"""Near-duplicates across the test split: a second, closer look at candidates, and the classes that it would empty.

Fingerprints alone do not tell packshots on white apart. So every candidate is decoded again and laid over its partner
(`pixels.overlay`): the place where both differ most decides.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from flows.data.fingerprints import candidates
from flows.data.near import NAME, read_pairs
from flows.errors import InputError
from flows.live import counted
from models.data.manifest import read_photo, read_table
from pixels import BadPhoto
from pixels.overlay import difference, thumbnail

LIMIT = 0.7  # difference of near-duplicates under one label; docs/tasks/data-versions.md has the figures
DIFFERENT_LABELS = 0.3  # share of the limit that holds for two photos under different labels
MOST = 0.5  # share of its photos, or of its train photos, that a class may lose
KEPT_THUMBNAILS = 512  # at most 57 MB
NAMED = 5  # classes that a remark names
BATCH = 256  # photos that a thread looks at before it takes the next
OFF = "off"


def parse_limit(text: str) -> float | None:
    """The limit that `--near-duplicates` names; None for `off`.

    Raises:
        InputError: it is neither `off` nor a number above 0 and up to 1.
    """
    if text.strip().lower() == OFF:
        return None
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not 0 < limit <= 1:
        raise InputError(f"--near-duplicates: {text!r} is neither `off` nor a number above 0 and up to 1 ({LIMIT})")
    return limit


class Side(NamedTuple):
    """Photos on one side of the test split: rows (N,) of `Photos`, and fingerprints (N, BYTES)."""

    rows: NDArray[np.int64]
    fingerprint: NDArray[np.uint8]


class Pairs(NamedTuple):
    """P near-duplicates: row of the photo, row of its partner, distance of the fingerprints, difference of the photos."""

    row: NDArray[np.int64]
    near: NDArray[np.int64]
    distance: NDArray[np.float32]
    difference: NDArray[np.float32]


@dataclass(frozen=True)
class Photos:
    """The photos of the next version, in the shards of its folder; `table` has their label, shard, offset and size."""

    folder: Path
    table: pa.Table

    def near(self, side: Side, other: Side, *, limit: float) -> Pairs:
        """Near-duplicates in `other` of photos in `side`: for each photo the one whose fingerprint is nearest.

        Decodes a photo and at most `fingerprints.PARTNERS` candidates, and stops at the first near-duplicate.
        """
        found = candidates(side.fingerprint, other.fingerprint)
        row, partner = side.rows[found.row], other.rows[found.other]
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        ends = np.append(starts[1:], len(row))
        order = np.argsort(partner[starts], kind="stable")  # photos that share a partner follow each other
        thumbnails = lru_cache(KEPT_THUMBNAILS)(self._thumbnail)

        def look(batch: NDArray[np.int64]) -> list[tuple[int, float]]:
            return [
                seen
                for start, end in zip(starts[batch].tolist(), ends[batch].tolist(), strict=True)
                for seen in self._first(range(start, end), row, partner, thumbnails, limit=limit)
            ]

        seen: list[tuple[int, float]] = []
        batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool, counted("comparing", len(order)) as progress:
            for batch, pairs in zip(batches, pool.map(look, batches), strict=True):
                seen += pairs
                progress.add(len(batch))
        at, apart = np.array([at for at, _ in seen], np.int64), np.array([apart for _, apart in seen], np.float32)
        return Pairs(row[at], partner[at], found.distance[at], apart)

    def _first(
        self,
        positions: range,
        row: NDArray[np.int64],
        partner: NDArray[np.int64],
        thumbnails: Callable[[int], Image.Image | None],
        *,
        limit: float,
    ) -> Iterator[tuple[int, float]]:
        """Yields position and difference of the first candidate that is a near-duplicate, if one is."""
        for position in positions:
            ours, theirs = int(row[position]), int(partner[position])
            one, other = thumbnails(ours), thumbnails(theirs)
            allowed = limit * (1 if self._may_agree(ours, theirs) else DIFFERENT_LABELS)
            if one and other and (apart := difference(one, other)) <= allowed:
                yield position, apart
                return

    def _may_agree(self, ours: int, theirs: int) -> bool:
        """True if both photos have the same label, or one of them has none."""
        labels = {str(self.table["label"][row].as_py()) for row in (ours, theirs)}
        return len(labels) == 1 or "" in labels

    def _thumbnail(self, row: int) -> Image.Image | None:
        shard, offset, size = (self.table[name][row].as_py() for name in ("shard", "offset", "size"))
        try:
            return thumbnail(read_photo(self.folder, shard, offset, size))
        except BadPhoto:  # of an earlier release, whose decoder took it
            return None

    def classes_to_spare(
        self, lost: NDArray[np.int64], kept: NDArray[np.bool_], is_train: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """(L,) true for rows (L,) that stay, because their class would lose more than MOST of its photos otherwise.

        Photos without a label are of no class. kept, is_train: (N,) state of all photos before the loss.
        """
        codes = pc.dictionary_encode(self.table["label"].combine_chunks()).indices.to_numpy()
        spared = np.zeros(codes.max(initial=-1) + 1, np.bool_)
        for those in (kept, kept & is_train):
            had = np.bincount(codes[those], minlength=len(spared))
            loses = np.bincount(codes[lost[those[lost]]], minlength=len(spared))
            spared |= loses > MOST * had
        return spared[codes[lost]] & pc.not_equal(self.table["label"].take(pa.array(lost)), "").to_numpy()


def notes(out: Path) -> list[str]:
    """Remarks on classes of the version in folder `out` that near-duplicates would empty, or whose test photos they took."""
    pairs, labels = read_pairs(out / NAME), read_table(out, name="labels")
    rows = pc.index_in(pairs["id"], value_set=labels["id"].combine_chunks())
    of_pairs, decision = labels["label"].take(rows), pairs["decision"]
    tested = labels["label"].filter(pc.and_(labels["kept"], pc.equal(labels["split"], "test")))
    spared = pc.unique(of_pairs.filter(pc.equal(decision, "")))
    taken = pc.unique(of_pairs.filter(pc.equal(decision, "near-train")))
    taken = taken.filter(pc.invert(pc.is_in(taken, value_set=tested.combine_chunks())))
    found = {
        "would lose most photos as near-duplicates of photos across the test split, and keeps them: its accuracy on test "
        "photos is too high": spared,
        "has no test photo left, because its test photos are near-duplicates of photos to learn": taken,
    }
    return [
        f"{_named(classes)} {problem}; `cleanshelf data show --near` lists the pairs"
        for problem, classes in found.items()
        if len(classes)
    ]


def _named(labels: pa.Array) -> str:
    names = sorted(labels.to_pylist())
    shown = ", ".join(map(repr, names[:NAMED])) + (", ..." if len(names) > NAMED else "")
    return f"class {shown}" if len(names) == 1 else f"each of {len(names)} classes ({shown})"
