"""Claim: a training is as fast as its network: reading, decoding, augmenting and bookkeeping cost next to nothing.

    python benchmarks/train_loop.py
    python benchmarks/train_loop.py --set train.compile=true    # our side with torch.compile
    python benchmarks/train_loop.py --bf16                      # the bare step in bfloat16 beside float32, and nothing else

Ours: `models.training.train.train` with its defaults, on drawn JPEGs of 500 x 400 px in a shard, cross-entropy. Every draw of a
measured epoch is a photo that was not decoded before. Bare: the same network, head and optimiser on one synthetic batch in
channels-last, with the same number of threads and, on a GPU, in bfloat16. Both alternate in one process, with memory kept as in
trainings. The speed of ours is that of its own metrics.jsonl, after the first epoch; the figure is the median of the rounds.

Cost of checkpoints: the same training with a checkpoint every few steps and with none within an epoch, alternating. The
difference in seconds over the number of checkpoints written, times one checkpoint in 10 minutes (the default of
train.checkpoint_minutes), as a share of the time.

On a CPU MobileNetV2 at 96 px; on a GPU, if there is one, EfficientNetV2-s and ViT-B/16 at 224 px.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from figure import figure, header, unmeasured
from pace import environment
from pace.bare import BareStep
from pace.data import drawn_jpeg, write_data
from pace.rounds import ratios, spread, told
from pace.trainings import Epochs, Written, recipe_of, run

from models.networks.network import best_device
from models.recipe.config import Recipe

CLAIM = "our loop, reading and decoding included, is nearly as fast as the bare step; checkpoints cost nothing"
FOLDER = Path(__file__).resolve().parents[1] / "build"  # on the disk that workspaces are on
CLASSES, DISTINCT, VALIDATION = 1_000, 128, 16
ON_A_GPU = "our loop / bare step on a GPU, EfficientNetV2-s and ViT-B/16 at 224 px, bf16: >= 0.90"
EPOCHS = 3
OFTEN_S, RARELY_S = 0.6, 600.0  # seconds between checkpoints


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network on one device; side: of the photos that views are taken from, in px."""

    backbone: str
    size: int
    side: int
    batch: int
    steps: int
    target: float

    def recipe(self, steps: int, *, settings: Sequence[str] = (), checkpoint_s: float = RARELY_S) -> Recipe:
        """Recipe of a training with EPOCHS epochs of `steps` steps."""
        train = {"epochs": EPOCHS, "batch_size": self.batch, "epoch_length": steps * self.batch, "warmup_epochs": 0,
                 "checkpoint_minutes": checkpoint_s / 60}  # fmt: skip
        return recipe_of({"backbone": self.backbone, "size": self.size}, train, side=self.side, settings=settings)


CASES = {
    "cpu": (Case(backbone="mobilenetv2_100", size=96, side=160, batch=32, steps=16, target=0.92),),
    "cuda": (
        Case(backbone="tf_efficientnetv2_s", size=224, side=256, batch=128, steps=60, target=0.9),
        Case(backbone="vit_base_patch16_224", size=224, side=256, batch=128, steps=60, target=0.9),
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    args = parse(arguments)
    if args.device is None:
        header(CLAIM)
        return environment.on_each_device(sys.argv[1:] if arguments is None else arguments, __file__, on_a_gpu=ON_A_GPU)
    FOLDER.mkdir(exist_ok=True)
    for number, case in enumerate(CASES[args.device]):
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            measured = Measured(case, Path(folder), steps=args.steps or case.steps, settings=args.set)
            if args.bf16:
                precision(measured, rounds=args.rounds)
                continue
            loop(measured, rounds=args.rounds)
            if number == 0:
                checkpoints(measured, rounds=math.ceil(args.rounds / 2))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parsed command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--device", choices=environment.DEVICES, help="default: the CPU, and a GPU if there is one")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--steps", type=int, default=0, help="steps of an epoch; 0: as many as take a few seconds")
    made.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="recipe keys of our side")
    made.add_argument("--bf16", action="store_true", help="compare the precisions of the bare step instead")
    return made.parse_args(arguments)


@dataclass
class Measured:
    """A case with its photos in a folder, and what its trainings found. Each photo is drawn once in a training."""

    case: Case
    folder: Path
    steps: int
    settings: Sequence[str] = ()
    trainings: list[Epochs] = field(default_factory=list)

    def __post_init__(self) -> None:
        rows = EPOCHS * self.steps * self.case.batch
        labels = [f"class {row % CLASSES:04d}" for row in range(rows + VALIDATION)]
        splits = ["train"] * rows + ["val"] * VALIDATION
        write_data(self.folder / "data", [drawn_jpeg(seed) for seed in range(min(DISTINCT, rows))], labels, splits)

    def bare(self, device: str, *, half: bool) -> BareStep:
        """The bare step of the same network."""
        recipe = self.case.recipe(self.steps, settings=self.settings)
        num_classes = min(CLASSES, EPOCHS * self.steps * self.case.batch)
        return BareStep(recipe, num_classes=num_classes, device=device, half=half)

    def where(self, device: str) -> str:
        """Network, device and settings, for the name of a figure."""
        return ", ".join([f"{self.case.backbone} at {self.case.size} px", device, *self.settings])

    def photos_per_s(self, *, checkpoint_s: float = RARELY_S) -> float:
        """Speed of a new training."""
        recipe = self.case.recipe(self.steps, settings=self.settings, checkpoint_s=checkpoint_s)
        self.trainings.append(run(self.folder / "data", recipe, out=self.folder / "out"))
        return self.trainings[-1].photos_per_s


def loop(measured: Measured, *, rounds: int) -> None:
    """Prints the ratio of a training to the bare step, and the share of time in which it waited for photos."""
    case, device = measured.case, best_device().type
    bare, where = measured.bare(device, half=device == "cuda"), measured.where(device)
    found = ratios(measured.photos_per_s, {"bare": lambda: bare.photos_per_s(measured.steps)}, rounds=rounds)["bare"]
    ratio = told(f"our loop / bare step, {where}", found)
    speed = max(epochs.photos_per_s for epochs in measured.trainings)
    figure(f"our loop / bare step, {where}", round(ratio, 3), target=f">= {case.target}", met=ratio >= case.target,
           baseline=f"bare step; {spread(found)}; ours at best {speed:.0f} photos/s")  # fmt: skip
    waiting = measured.trainings[-1].waiting
    if math.isnan(waiting):
        unmeasured(f"share of time waiting for photos, {where}", "metrics.jsonl does not tell it")
    else:
        figure(f"share of time waiting for photos, {where}", round(waiting, 3), target="told", met=True, baseline=None)


def precision(measured: Measured, *, rounds: int) -> None:
    """Prints the speed of the bare step in bfloat16 over that in float32."""
    device = best_device().type
    half, single = (measured.bare(device, half=half) for half in (True, False))
    found = ratios(
        lambda: half.photos_per_s(measured.steps), {"": lambda: single.photos_per_s(measured.steps)}, rounds=rounds
    )[""]
    what = f"bare step in bfloat16 / in float32, {measured.where(device)}"
    figure(what, round(told(what, found), 3), target="told", met=True, baseline=spread(found))


def checkpoints(measured: Measured, *, rounds: int) -> None:
    """Prints how much longer a training takes because of checkpoints, at one in 10 minutes."""
    written, seconds = 0.0, 0.0
    draws = (EPOCHS - 1) * measured.steps * measured.case.batch

    def often() -> float:
        nonlocal written, seconds
        with Written(measured.folder / "out" / "checkpoint.pt") as checkpoint:
            speed = measured.photos_per_s(checkpoint_s=OFTEN_S)
        # The one at the end of each epoch is outside the seconds of metrics.jsonl, and the first epoch is left out.
        written += (len(checkpoint.seen) - EPOCHS) * (EPOCHS - 1) / EPOCHS
        seconds += draws / speed
        return speed

    found = ratios(often, {"without": measured.photos_per_s}, rounds=rounds)["without"]
    ratio = told("speed with checkpoints / without", found)
    if written < 1:
        unmeasured("cost of checkpoints", "epochs are too short for one; raise --steps")
        return
    cost_s = seconds * (1 - ratio) / written
    print(f"{written:.0f} checkpoints in {seconds:.1f} s, each costs {cost_s:.3f} s")
    share = 100 * cost_s / RARELY_S
    figure(f"cost of checkpoints, one in 10 minutes, % of the time, {measured.case.backbone}", round(share, 4),
           target="<= 1", met=share <= 1, baseline=f"0; speed with many / with none, {spread(found)}")  # fmt: skip


if __name__ == "__main__":
    environment.enter()
    main()
