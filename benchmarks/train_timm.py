"""Claim: trainings are at least as fast as timm's own loop on the same network, photos, workers and threads.

    python benchmarks/train_timm.py

Timm: its create_dataset on a folder of JPEGs per class, its create_loader with the transforms of its train.py, its optimiser, a
plain step with cross-entropy. Once like our loop, in channels-last and, on a GPU, in bfloat16; once with timm's defaults,
contiguous float32. Ours: `models.training.train.train` with its defaults on the same JPEGs in a shard. JPEGs are drawn, 500 x 400
px, and all are decoded at every draw on both sides. Every side has its default augmentation. Measurements alternate in one
process, with memory kept as in trainings; the figure is the median of the rounds, of epochs after the first.

On a CPU MobileNetV2 at 224 px, one decoding worker; on a GPU, if there is one, EfficientNetV2-s, a worker per core.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from figure import figure, header
from pace import environment
from pace.data import drawn_jpeg, write_data, write_folder
from pace.rounds import ratios, spread, told
from pace.timm_loop import TimmLoop
from pace.trainings import recipe_of, run

CLAIM = "a training is at least as fast as timm's loop, and with both sides' defaults faster"
CLASSES, DISTINCT, VALIDATION, EPOCHS = 100, 128, 16, 2
TARGETS = {"equal precision and layout": 1.0, "defaults of both": 1.3}
ON_A_GPU = "our loop / timm's loop on a GPU, EfficientNetV2-s at 224 px: >= 1.0, and >= 1.3 with the defaults of both"


@dataclass(frozen=True)
class Case:
    """One network on one device, and the length of an epoch in steps."""

    backbone: str
    size: int
    batch: int
    steps: int
    workers: int


CASES = {
    "cpu": Case("mobilenetv2_100", size=224, batch=32, steps=6, workers=1),
    "cuda": Case("tf_efficientnetv2_s", size=224, batch=128, steps=60, workers=min(len(os.sched_getaffinity(0)), 16)),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    args = parse(arguments)
    if args.device is None:
        header(CLAIM)
        return environment.on_each_device(sys.argv[1:] if arguments is None else arguments, __file__, on_a_gpu=ON_A_GPU)
    with tempfile.TemporaryDirectory() as folder:
        compare(CASES[args.device], Path(folder), args)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parsed command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--device", choices=environment.DEVICES, help="default: the CPU, and a GPU if there is one")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--steps", type=int, default=0, help="steps of an epoch; 0: as many as take a few seconds")
    made.add_argument("--size", type=int, default=0, help="px; 0: as in the claim")
    made.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="recipe keys of our side")
    return made.parse_args(arguments)


def compare(case: Case, folder: Path, args: argparse.Namespace) -> None:
    """Prints the ratio of our speed to that of timm's loop, for each of TARGETS."""
    steps, size = args.steps or case.steps, args.size or case.size
    draws, rows = steps * case.batch, EPOCHS * steps * case.batch
    labels = [f"class {row % CLASSES:04d}" for row in range(rows + VALIDATION)]
    photos = [drawn_jpeg(seed) for seed in range(min(DISTINCT, rows))]
    splits = ["train"] * rows + ["val"] * VALIDATION
    data = write_data(folder / "data", photos, labels, splits)
    jpegs = write_folder(folder / "jpegs", photos, labels[:draws])
    train = {"epochs": EPOCHS, "batch_size": case.batch, "epoch_length": draws, "warmup_epochs": 0}
    recipe = recipe_of({"backbone": case.backbone, "size": size}, train, side=round(size * 8 / 7), settings=args.set)
    theirs = {
        name: TimmLoop(recipe, jpegs, num_classes=CLASSES, device=args.device, workers=case.workers, equal=equal)
        for name, equal in zip(TARGETS, (True, False), strict=True)
    }
    for loop in theirs.values():
        loop.photos_per_s()  # starts its workers
    found = ratios(
        lambda: run(data, recipe, out=folder / "out").photos_per_s,
        {name: loop.photos_per_s for name, loop in theirs.items()},
        rounds=args.rounds,
    )
    for name, values in found.items():
        what = f"our loop / timm's loop, {name}, {case.backbone} at {size} px, {args.device}"
        ratio = told(what, values)
        beside = f"timm's loop, {case.workers} workers; {spread(values)}; at best {theirs[name].best:.0f} photos/s"
        figure(what, round(ratio, 3), target=f">= {TARGETS[name]}", met=ratio >= TARGETS[name], baseline=beside)


if __name__ == "__main__":
    environment.enter()
    main()
