"""Claim: a map of 2.5 million photos is laid out in minutes on two cores.

Made-up embeddings of 2,000 groups, in a file that is mapped into memory, as a cleaning leaves them. Measured: the time from
the file to positions, UMAP's compilation included, and the peak memory beyond that of the imports. Quality: the share of
photos whose nearest neighbour on the map is of their group, for 2,000 of them. The full size writes a file of 2.6 GB:

    python benchmarks/map_layout.py --photos 2500000
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from figure import figure, header
from numpy.typing import NDArray

from flows.map.layout import lay_out
from flows.map.sources import Vectors

GROUPS, NOISE, CHECKED = 2_000, 0.7, 2_000
BLOCK = 50_000


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=512, help="of the embeddings")
    args = parser.parse_args(words)
    header("a map of 2.5 million photos is laid out in minutes on two cores")
    with tempfile.TemporaryDirectory() as folder:
        table, group = made_up(Path(folder) / "features.npy", args.photos, args.width)
        vectors = Vectors(np.arange(args.photos, dtype=np.uint64), [table], [np.arange(args.photos)])
        began = time.monotonic()
        with Memory() as memory:
            xy = lay_out(vectors, seed=0)
        seconds, gigabytes = time.monotonic() - began, memory.peak_gb - memory.before_gb
    where = f"{args.photos:,} photos x {args.width}"
    figure(f"{where}, s", round(seconds, 1), target="told", met=True, baseline=None)
    figure(f"{where}, GB beyond the imports", round(gigabytes, 2), target="told", met=True, baseline=None)
    figure(f"{where}, nearest neighbour of the same group", round(same_group(xy, group), 3), target="told", met=True,
           baseline=round(1 / GROUPS, 4))  # fmt: skip


def made_up(file: Path, num: int, width: int) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """Embeddings (num, width) in a file, around the centres of their groups (num,)."""
    draw = np.random.default_rng(0)
    centres, group = draw.standard_normal((GROUPS, width), np.float32), draw.integers(0, GROUPS, num)
    table = np.lib.format.open_memmap(file, "w+", np.float16, (num, width))
    for start in range(0, num, BLOCK):
        part = group[start : start + BLOCK]
        table[start : start + BLOCK] = centres[part] + NOISE * draw.standard_normal((len(part), width), np.float32)
    table.flush()
    mapped: NDArray[np.float16] = np.load(file, mmap_mode="r")
    return mapped, group


def same_group(xy: NDArray[np.float32], group: NDArray[np.int64]) -> float:
    """Share of some photos whose nearest neighbour on the map is of their group."""
    some = np.random.default_rng(1).choice(len(xy), min(CHECKED, len(xy)), replace=False)
    hits = 0
    for row in some:
        distance = ((xy - xy[row]) ** 2).sum(axis=1)
        distance[row] = np.inf
        hits += int(group[distance.argmin()] == group[row])
    return hits / len(some)


class Memory:
    """Largest memory of this process while the block runs, without files that are mapped."""

    def __enter__(self) -> Memory:
        self.before_gb = self.peak_gb = own_gb()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            self.peak_gb = max(self.peak_gb, own_gb())


def own_gb() -> float:
    """Memory of this process now."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1e6


if __name__ == "__main__":
    main()
