"""Claim: photos come as fast as the cores decode JPEGs, and a million of them cost neither memory nor a slow start.

Drawn JPEGs of 500 px, squeezed to 224 px, without keeping any. CPU seconds per photo of the whole loader, all processes
together, beside a bare loop of libjpeg-turbo at the same scale; photos/s with a process on every core; share of time that a
pretend device, which takes 3,000 photos/s, waits for 8 processes; time to the end of the first step of a training and memory
of 4 processes at 1,000,000 rows of 50,030 classes, with a loss that has state per photo. `--start ROWS FOLDER` runs the last
one for one number of rows and prints JSON. The allocator is set as in trainings.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import simplejpeg
import torch
from figure import figure, header, unmeasured
from pace import environment
from pace.trainings import recipe_of
from PIL import Image

from models.data import machine, rows
from models.data.manifest import read_manifest, write_table
from models.data.photos import Photos
from models.networks.network import build_network
from models.training.job import Job
from models.training.train import train

JPEG_PX, SIDE = 500, 224
DRAWN, BATCH = 256, 64  # JPEGs, which the rows of a data version repeat
CLASSES, LOADERS, STEPS = 50_030, 4, 10  # of a training that starts
RATE = 3000  # photos/s of the pretend device
FEW, MANY = 1_000, 1_000_000
ROUNDS = 3


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", nargs=2, metavar=("ROWS", "FOLDER"))
    args = parser.parse_args()
    rows.SHARE = 0.0  # photos are decoded every time, as where memory does not hold them
    torch.set_num_threads(1)
    if args.start:
        print(json.dumps(start(int(args.start[0]), Path(args.start[1]))))
        return
    header("photos come as fast as the cores decode JPEGs, and a million of them cost neither memory nor a slow start")
    jpegs = [drawn(number) for number in range(DRAWN)]
    with tempfile.TemporaryDirectory() as folder:
        data = data_version(Path(folder) / "data", jpegs, num_rows=4_000)
        device(data, bare=speed(jpegs, data))
        on_gpu(data)
        started(jpegs, Path(folder))


def drawn(number: int) -> bytes:
    """A JPEG with detail of every size, of about 60 kB."""
    rng, picture = np.random.default_rng(number), np.zeros((JPEG_PX, JPEG_PX, 3), np.float32)
    for cells in (4, 16, 64, 250):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        picture += np.asarray(noise.resize((JPEG_PX, JPEG_PX), Image.Resampling.BICUBIC), np.float32) / cells**0.5
    picture *= 255 / picture.max()
    out = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(out, "JPEG", quality=88)
    return out.getvalue()


def data_version(folder: Path, jpegs: Sequence[bytes], *, num_rows: int) -> Path:
    """A data version whose rows repeat the JPEGs in one shard."""
    (folder / "shards").mkdir(parents=True)
    (folder / "shards" / "drawn.tar").write_bytes(b"".join(jpegs))
    ends, which = np.cumsum([len(each) for each in jpegs]), np.arange(num_rows) % len(jpegs)
    size = np.array([len(each) for each in jpegs], np.int32)[which]
    ids = [f"{number:016x}" for number in range(num_rows)]
    num_classes = classes_of(num_rows)
    label = [f"class {number * num_classes // num_rows:05d}" for number in range(num_rows)]
    empty, split = [""] * num_rows, ["val" if number % 10 == 0 else "train" for number in range(num_rows)]
    write_table(folder, {"id": ids, "sha256": [each * 4 for each in ids], "shard": ["drawn"] * num_rows,
                         "offset": ends[which] - size, "size": size, "width": np.full(num_rows, JPEG_PX, np.int32),
                         "height": np.full(num_rows, JPEG_PX, np.int32), "source": empty, "path": ids}, name="index")  # fmt: skip
    write_table(folder, {"id": ids, "given_label": label, "label": label, "split": split, "kept": [True] * num_rows,
                         "decision": empty, "score": pa.nulls(num_rows, pa.float32()),
                         "round": np.zeros(num_rows, np.int8), "scored_by": empty}, name="labels")  # fmt: skip
    return folder


def classes_of(num_rows: int) -> int:
    """Number of classes, each with a training photo."""
    return min(CLASSES, num_rows // 10)


def loader(data: Path, loaders: int) -> Photos:
    """All photos of a data version."""
    manifest = read_manifest(data)
    return Photos(manifest, np.arange(len(manifest)), side=SIDE, loaders=loaders, is_reduced=True)


def decode_all(jpegs: Sequence[bytes]) -> None:
    """The bare loop."""
    for jpeg in jpegs:
        simplejpeg.decode_jpeg(jpeg, "RGB", min_height=SIDE, min_width=SIDE)


def load_all(photos: Photos) -> None:
    """A pass over all photos."""
    for _ in photos.in_order(BATCH):
        pass


def speed(jpegs: Sequence[bytes], data: Path) -> float:
    """Figures of the speed per core and over all cores; returns photos/s of the bare loop."""
    cores, one = machine.cores(), loader(data, 1)
    every, number = loader(data, cores), len(one)
    bare, cost, walls = [], [], dict[int, list[float]]({1: [], cores: []})
    for _ in range(ROUNDS):  # interleaved, so that a slow moment hits all of them
        bare.append(cpu_seconds(lambda: decode_all(jpegs)) / len(jpegs))
        for photos in (one, every):
            begun = time.perf_counter()
            spent = cpu_seconds(lambda photos=photos: load_all(photos)) / number  # type: ignore[misc]  # mypy cannot infer the default of a lambda
            walls[photos.loaders].append(time.perf_counter() - begun)
            if photos is one:
                cost.append(spent)
    ratio, rates = min(bare) / min(cost), {loaders: number / min(seconds) for loaders, seconds in walls.items()}
    figure(f"loader: photos/s per core, {JPEG_PX} px JPEG to {SIDE} px, over bare libjpeg-turbo", round(ratio, 3),
           target=">= 0.9", met=ratio >= 0.9, baseline=round(1 / min(bare)))  # fmt: skip
    linear = rates[cores] / rates[1]
    figure(f"loader: photos/s with {cores} processes on {cores} cores over one process", round(linear, 2),
           target=f">= {0.85 * cores:g}", met=linear >= 0.85 * cores, baseline=round(rates[1]))  # fmt: skip
    return 1 / min(bare)


def cpu_seconds(action: Callable[[], None]) -> float:
    """CPU time of this process and of those that it started and that have ended."""

    def spent() -> float:
        return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))

    begun = spent()
    action()
    return spent() - begun


def device(data: Path, *, bare: float) -> None:
    """Figure of the share of time that a pretend device waits."""
    cores, photos = machine.cores(), loader(data, 8)
    waited, begun = 0.0, time.perf_counter()
    batches = photos.in_order(BATCH)
    while True:
        asked = time.perf_counter()
        if next(batches, None) is None:
            break
        waited += time.perf_counter() - asked
        time.sleep(BATCH / RATE)
    seconds = time.perf_counter() - begun
    rate, perfect = len(photos) / seconds, max(0.0, 1 - cores * bare / RATE)
    print(f"{cores} cores give {rate:.0f} photos/s; the bare loop alone would give {cores * bare:.0f} and leave the device "
          f"waiting for {perfect:.0%} of the time")  # fmt: skip
    figure(f"loader of 8 processes on {cores} cores: share of waiting of a device that takes {RATE} photos/s",
           round(waited / seconds, 3), target="<= 0.05, or the bare loop waits as well",
           met=waited / seconds <= 0.05 or perfect > 0.05, baseline=f"the bare loop on these cores: {perfect:.3f}")  # fmt: skip


def on_gpu(data: Path) -> None:
    """Figure of JPEGs decoded by the GPU, over those decoded by loader processes."""
    name = f"loader: photos/s, {JPEG_PX} px JPEG to {SIDE} px, decoded by the GPU over by loader processes"
    if not torch.cuda.is_available():
        unmeasured(name, "this machine has no GPU")
        return
    manifest, rates = read_manifest(data), list[float]()
    for on_device in (False, True):
        photos = Photos(manifest, np.arange(len(manifest)), side=SIDE, device=torch.device("cuda"), is_reduced=True,
                        on_device=on_device)  # fmt: skip
        begun = time.perf_counter()
        load_all(photos)
        torch.cuda.synchronize()
        rates.append(len(photos) / (time.perf_counter() - begun))
    figure(name, round(rates[1] / rates[0], 2), target="told", met=True,
           baseline=f"{photos.loaders} processes: {rates[0]:.0f}")  # fmt: skip


def started(jpegs: Sequence[bytes], folder: Path) -> None:
    """Figures of the first step and of memory, in processes of their own."""
    found = {}
    for number in (FEW, MANY):
        data = data_version(folder / str(number), jpegs, num_rows=number)
        command = [sys.executable, __file__, "--start", str(number), str(data)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
        found[number] = json.loads(done.stdout)
    seconds, few_s = found[MANY]["seconds"], found[FEW]["seconds"]
    figure(f"time to the end of the first step at {MANY:,} rows and {CLASSES:,} classes, s", round(seconds, 2),
           target="<= 5", met=seconds <= 5, baseline=f"{FEW:,} rows, {classes_of(FEW):,} classes: {few_s:.2f}")  # fmt: skip
    grown = found[MANY]["loaders_mb"] - found[FEW]["loaders_mb"]
    figure(f"private memory of {LOADERS} loader processes at {MANY:,} rows beyond that at {FEW:,}, MB", round(grown, 1),
           target="<= 100", met=grown <= 100, baseline=round(found[FEW]["loaders_mb"], 1))  # fmt: skip


class Enough(Exception):
    """Ends a training of which enough was seen."""


def start(num_rows: int, data: Path) -> dict[str, float]:
    """Seconds from nothing read to the end of the first step of a training, and memory of its loader processes later."""
    recipe = recipe_of({"backbone": "test_resnet", "size": 96}, {"batch_size": BATCH, "loaders": LOADERS}, side=SIDE,
                       settings=["loss.name=marvel"])  # fmt: skip
    found, steps, begun = dict[str, float](), itertools.count(), time.perf_counter()
    network = build_network(recipe.members[0], num_classes=classes_of(num_rows))

    def before_pass(*_: Any) -> None:
        done = next(steps)
        if done == 1:
            found["seconds"] = time.perf_counter() - begun
        if done == STEPS:
            found["loaders_mb"] = loaders_mb()
            raise Enough

    network.register_forward_pre_hook(before_pass)
    (data / "out").mkdir()
    with suppress(Enough):
        train(Job(data=data, recipe=recipe, member=0, out=data / "out"), network)
    return found


def loaders_mb() -> float:
    """Memory that only the processes started by this one have."""
    me = os.getpid()
    return sum(map(private_mb, Path(f"/proc/{me}/task/{me}/children").read_text(encoding="utf-8").split()))


def private_mb(pid: str) -> float:
    """Memory that only this process has."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


if __name__ == "__main__":
    environment.enter()
    main()
