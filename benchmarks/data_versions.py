"""Data versions with a million photos: a version of new labels, a switch, a comparison, a check; the rate of ingestion.

The photos of the large version are synthetic bytes in real shards; ingestion takes real JPEGs. The rivals run here too:
ingestion is compared with a loop that only decodes and hashes, on as many threads; shards are compared with the same photos as
loose files under DVC, in this process, with its push but without our checks, fsyncs, ledger and tags.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np
from dvc.repo import Repo
from figure import figure, header
from PIL import Image

from durable import link
from flows.data.shards import pack
from flows.data.versions import DataVersions
from flows.delivery.build import build_version
from flows.workspace import Workspace
from models.data.manifest import read_manifest, write_labels, write_table, write_version
from pixels import decode

T = TypeVar("T")

CLAIM = "with a million photos, labels are changed, switched, compared and checked in seconds; ingestion is bound by decoding"
CLASSES = 10_000
CHANGED = 0.01  # share of labels that a new version drops
SIDE = 348  # px of the JPEGs, as of the Grocery Store photos
ROUNDS = 5  # rounds of bare loop and ingestion
BYTES_PER_PHOTO = 1000  # memory that ingestion may take for each further photo
TAKE_IN = """
import re, sys
from pathlib import Path
from flows.delivery.build import build_version
build_version(Path(sys.argv[1]), base=None, out=Path(sys.argv[2]))
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])  # getrusage tells the peak of who started us
"""


def main() -> None:
    """Runs the command line."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--rows", type=int, default=1_000_000, help="photos of the large version")
    asked.add_argument("--photos", type=int, default=10_000, help="JPEGs to ingest, and loose files under DVC")
    asked.add_argument(
        "--small", type=int, default=100_000, help="photos of 8 px to ingest, for the memory that they take"
    )
    asked.add_argument("--folder", type=Path, help="where to work; needs about 3 kB per row")
    options = asked.parse_args()
    header(CLAIM)
    with TemporaryDirectory(dir=options.folder) as folder:
        large(Path(folder), rows=options.rows)
        photos = make_photos(Path(folder) / "photos", number=options.photos)
        rate(Path(folder), photos)
        memory(Path(folder), make_photos(Path(folder) / "small photos", number=options.small, side=8))
        loose(Path(folder), photos)


def large(folder: Path, *, rows: int) -> None:
    """Figures of one large version, and of one that differs from it in labels."""
    versions = DataVersions(Workspace.init(folder / "large"))
    first = versions.commit(synthetic(versions, rows=rows), step="ingest", message="synthetic")
    cache = versions.workspace.root / ".dvc" / "cache"
    before = size_of(cache)
    seconds, second = timed(lambda: relabel(versions))
    at_most("labels-only version, s", seconds, limit=5)
    at_most("labels-only version, MB", (size_of(cache) - before) / 1e6, limit=20)
    at_most("comparison of two versions, s", timed(lambda: versions.diff(first, second))[0], limit=3)
    at_most(
        "check of labels, index and everything not read before, s", timed(lambda: versions.verify(second))[0], limit=1
    )
    at_most("switch to the version before, s", timed(lambda: versions.rollback(first))[0], limit=3)


def synthetic(versions: DataVersions, *, rows: int) -> Path:
    """A staged version with `rows` photos of 64 random bytes each."""
    folder, random = versions.new_folder(), np.random.default_rng(0)
    photos = sorted((hashlib.sha256(photo := random.bytes(64)).hexdigest(), photo) for _ in range(rows))
    ids = [digest[:16] for digest, _ in photos]
    packed = pack(((digest[:16], photo) for digest, photo in photos), folder=folder / "shards")
    labels = np.char.add("product ", random.integers(0, CLASSES, rows).astype(str)).astype(object)
    side, text = np.full(rows, 8, np.int32), np.full(rows, "", object)
    place = {"shard": np.array(list(packed.shards), object)[packed.shard], "offset": packed.offset, "size": packed.size}
    index = {"id": ids, "sha256": [digest for digest, _ in photos], **place, "width": side, "height": side,
             "source": np.full(rows, "synthetic", object), "path": [f"{photo_id}.jpg" for photo_id in ids]}  # fmt: skip
    split = np.array(["train", "val", "test"], object)[random.choice(3, rows, p=(0.7, 0.1, 0.2))]
    decided = {"split": split, "kept": np.ones(rows, bool), "decision": text, "round": np.zeros(rows, np.int8)}
    scores = {"score": random.random(rows, dtype=np.float32), "scored_by": np.full(rows, "none", object)}
    write_table(folder, index, name="index")
    write_table(folder, {"id": ids, "given_label": labels, "label": labels, **decided, **scores}, name="labels")
    write_table(folder, {name: [] for name in ("id", "label", "source", "path")}, name="conflicts")
    write_table(folder, {name: [] for name in ("path", "label", "source", "field", "reason")}, name="quarantine")
    write_version(folder, parent=None, step="ingest")
    return folder


def relabel(versions: DataVersions) -> str:
    """Selected version with a share of its labels dropped, as a round of cleaning writes it."""
    data, folder = versions.workspace.data, versions.new_folder()
    manifest = read_manifest(data)
    chosen = np.random.default_rng(1).random(len(manifest)) < CHANGED
    for path in data.rglob("*"):
        if path.is_file() and path.name not in ("labels.parquet", "VERSION.json"):
            link(path, folder / path.relative_to(data))
    write_labels(folder, replace(manifest, kept=~chosen, decision=np.where(chosen, "dropped", "")))
    write_version(folder, parent=versions.selected(), step="clean-1")
    return versions.commit(folder, step="clean-1", message="some dropped")


def make_photos(folder: Path, *, number: int, side: int = SIDE) -> Path:
    """Writes a folder per class with JPEGs of `side` px, all different: enlarged noise, which compresses about as photos do.

    Their brightness varies about as much as that of the Grocery Store photos (a standard deviation of 15).
    """
    random = np.random.default_rng(2)
    for i in range(number):
        small = random.integers(0, 256, (24, 24, 3)) + random.normal(0, 15)
        large = Image.fromarray(small.clip(0, 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        large.save(buffer, "JPEG", quality=90)
        path = folder / f"class {i % 100}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
    return folder


def rate(folder: Path, photos: Path) -> None:
    """Figures of ingestion, with the version that it commits, against a bare loop over the same files; median of some rounds.

    The first round, which warms the files and the imports, is not counted.
    """
    files = sorted(photos.rglob("*.jpg"))
    rounds = [one_round(folder / f"rate {number}", photos, files) for number in range(1 + ROUNDS)][1:]
    for name, took in (("ingestion", 1), ("ingestion with its commit and push", 2)):
        value = statistics.median(each[0] / each[took] for each in rounds)
        bare = statistics.median(len(files) / each[0] for each in rounds)
        figure(f"{name}: share of the rate of decoding and hashing alone", round(value, 3), target=">= 0.7",
               met=value >= 0.7, baseline=f"{bare:.0f} photos/s")  # fmt: skip


def one_round(folder: Path, photos: Path, files: list[Path]) -> tuple[float, float, float]:
    """Seconds of the bare loop, of an ingestion, and of an ingestion with its commit; earlier writes are on the disk."""
    os.sync()
    bare, _ = timed(lambda: decode_and_hash(files))
    versions = DataVersions(Workspace.init(folder))
    staged = versions.new_folder()
    reading, report = timed(lambda: build_version(photos, base=None, out=staged))
    storing, _ = timed(lambda: versions.commit(staged, step="ingest", message="photos", shards=report.shards))
    shutil.rmtree(folder)
    return bare, reading, reading + storing


def decode_and_hash(files: list[Path]) -> None:
    """Decodes and hashes files, as the bare loop does."""

    def one(path: Path) -> str:
        content = path.read_bytes()
        decode(content)
        return hashlib.sha256(content).hexdigest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, files))


def memory(folder: Path, photos: Path) -> None:
    """Memory of an ingestion of all photos less that of a quarter of them, each in a process of its own.

    Many small photos: with 10,000 the allocators' own warm-up hides what a photo takes, and the figure was 0.
    """
    quarter = folder / "quarter"
    for path in sorted(photos.rglob("*.jpg"))[::4]:
        link(path, quarter / path.relative_to(photos))
    (few, few_bytes, first), (many, many_bytes, second) = (take_in(source, folder) for source in (quarter, photos))
    at_most("memory of ingestion for each further photo, bytes", (many_bytes - few_bytes) / (many - few),
            limit=BYTES_PER_PHOTO, baseline=f"{first}; {second}")  # fmt: skip


def take_in(photos: Path, folder: Path) -> tuple[int, int, str]:
    """Ingests in a process of its own: number of photos, peak of its memory in bytes, and both in words with the seconds."""
    command = [sys.executable, "-c", TAKE_IN, str(photos), str(folder / f"memory {photos.name}")]
    seconds, done = timed(lambda: subprocess.run(command, capture_output=True, text=True, check=True))
    number, peak = sum(1 for _ in photos.rglob("*.jpg")), 1024 * int(done.stdout)
    return number, peak, f"{number:,} photos {peak / 1e6:.0f} MB, {seconds:.0f} s"


def loose(folder: Path, photos: Path) -> None:
    """Figures of the same photos as loose files under DVC and as shards: the first version, new labels, the switch back."""
    root = folder / "loose"
    root.mkdir()
    for path in photos.rglob("*.jpg"):
        link(path, root / "data" / path.relative_to(photos))
    rival = {"first version": 0.0, "new labels": 0.0, "switch back": 0.0}
    with Repo.init(str(root), no_scm=True) as repo, repo.config.edit() as config:
        config["core"] |= {"remote": "local", "site_cache_dir": str(folder / "site")}
        config["cache"]["type"] = ["reflink", "hardlink", "symlink", "copy"]
        config["remote"]["local"] = {"url": str(folder / "loose remote")}
    with Repo(str(root)) as repo:
        rival["first version"], pointer = timed(lambda: loose_version(repo, labels="old"))
        rival["new labels"], _ = timed(lambda: loose_version(repo, labels="new"))
        (root / "data.dvc").write_bytes(pointer)
        rival["switch back"], _ = timed(lambda: repo.checkout(force=True))
    versions, ours = DataVersions(Workspace.init(folder / "shards")), {}
    staged = versions.new_folder()
    shards = build_version(photos, base=None, out=staged).shards  # loose files are not decoded: neither is this counted
    ours["first version"], first = timed(lambda: versions.commit(staged, step="ingest", message="", shards=shards))
    ours["new labels"], _ = timed(lambda: relabel(versions))
    ours["switch back"], _ = timed(lambda: versions.rollback(first))
    for name, seconds in rival.items():
        ratio = seconds / ours[name]
        figure(f"{name}: times as fast as loose files", round(ratio, 1), target=">= 5", met=ratio >= 5,
               baseline=f"{seconds:.2f} s loose, {ours[name]:.2f} s in shards")  # fmt: skip


def loose_version(repo: Repo, *, labels: str) -> bytes:
    """Adds and pushes data/ with a labels file; returns the pointer."""
    data = Path(repo.root_dir) / "data"
    (data / "labels.csv").unlink(missing_ok=True)  # never write through a hard link into the cache
    (data / "labels.csv").write_text("".join(f"{path.name},{labels}\n" for path in sorted(data.rglob("*.jpg"))))
    repo.add(str(data))
    repo.push()
    return data.with_suffix(".dvc").read_bytes()


def at_most(name: str, value: float, *, limit: float, baseline: str | None = None) -> None:
    """Prints a figure whose target is an upper bound."""
    figure(name, round(value, 3), target=f"<= {limit:g}", met=value <= limit, baseline=baseline)


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds of some work, and its result."""
    began = time.perf_counter()
    made = work()
    return time.perf_counter() - began, made


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
