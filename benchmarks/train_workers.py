"""Claim: two processes that share a training are nearly twice as fast as one, and learn the same.

    python benchmarks/train_workers.py

Trainings as a flow starts them, MobileNetV2 at 96 px, batches of 64 drawn photos, one thread each: one process on one core, and
two on two cores, connected by gloo. Reading and decoding happen on the same cores. The figure is photos/s per core of two over
one, the median of alternating rounds, of epochs after the first. Beside it the same of two trainings that run at the same time,
with half the batch each, and exchange nothing: what the machine itself loses.

Then a network learns drawn shapes, 20 % of them labelled as another, by one process and by two, with several seeds. A fold of
the photos, which it did not see, is scored and decided on as in cleaning. Two processes should agree with one about as often as
two seeds do, as batch norm sees half of each batch. Accuracy is that on validation photos. Targets leave room for two standard
errors: of the decisions over the photos, of the accuracy over the seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from figure import figure, header, unmeasured
from noisy.drawn import drawn_set
from pace.data import drawn_jpeg, encoded, write_data
from pace.rounds import ratios, spread, told
from pace.trainings import read_epochs, recipe_of

from flows.run.launch import run_child
from models.data.manifest import read_manifest
from models.data.noise import symmetric
from models.decisions import assess, decide
from models.evaluation.scores import Scores, read_scores
from models.recipe.config import Clean, Recipe, to_dict

CLAIM = "two processes that share a training are nearly twice as fast as one, and learn the same"
CLASSES, DISTINCT, EPOCHS, BATCH, PHOTO = 100, 128, 3, 64, 160
WRONG, FOLDS, STANDARD_ERRORS = 0.2, 4, 2
SHAPES = [f"augment.{key}=0" for key in ("zoom", "rotate_deg", "colour", "erase")]  # they vary enough as drawn


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    args = parse(arguments)
    header(CLAIM)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory() as folder:
        if len(os.sched_getaffinity(0)) > 1:
            speed(Path(folder) / "speed", rounds=args.rounds, steps=args.steps)
        else:
            unmeasured("photos/s per core, 2 processes / 1", "this machine has one core")
        learning(Path(folder) / "learning", num_train=args.photos, epochs=args.epochs, seeds=args.seeds)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parsed command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=2)
    made.add_argument("--steps", type=int, default=10, help="steps of an epoch, when speed is measured")
    made.add_argument("--photos", type=int, default=1200, help="training photos, when learning is compared")
    made.add_argument("--epochs", type=int, default=16, help="when learning is compared")
    made.add_argument("--seeds", type=int, default=4, help="two or more, when learning is compared")
    return made.parse_args(arguments)


def train(data: Path, recipe: Recipe, *, out: Path, workers: int = 1, fold: int | None = None) -> Path:
    """Trains in processes of their own and in an empty folder, which it returns."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    file = out / "recipe.json"
    file.write_text(json.dumps(to_dict(recipe)), encoding="utf-8")
    held_out = [] if fold is None else ["--fold", fold]
    words = ["--data", data, "--recipe", file, "--member", 0, "--out", out, *held_out]
    run_child("models.training.train", words, say=lambda line: None, workers=workers)
    return out


def on_cores(cores: Sequence[int], work: Callable[[], Path]) -> Path:
    """Result of the work, which with all that it starts has only these cores."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # of this thread
    try:
        return work()
    finally:
        os.sched_setaffinity(0, allowed)


def speed(folder: Path, *, rounds: int, steps: int) -> None:
    """Prints the speed per core of two processes over that of one."""
    rows = EPOCHS * steps * BATCH
    labels = [f"class {row % CLASSES:04d}" for row in range(rows + BATCH)]
    photos = [drawn_jpeg(seed, width=PHOTO, height=PHOTO) for seed in range(min(DISTINCT, rows))]
    data = write_data(folder / "data", photos, labels, ["train"] * rows + ["val"] * BATCH)
    cores = sorted(os.sched_getaffinity(0))[:2]

    def recipe(batch: int) -> Recipe:
        settings = {"epochs": EPOCHS, "batch_size": batch, "epoch_length": steps * batch, "warmup_epochs": 0}
        return recipe_of({"backbone": "mobilenetv2_100", "size": 96}, settings | {"threads": 1}, side=PHOTO)

    def measure(name: str, cores: Sequence[int], *, batch: int = BATCH, workers: int = 1) -> float:
        out = on_cores(cores, lambda: train(data, recipe(batch), out=folder / name, workers=workers))
        return read_epochs(out).photos_per_s

    def one() -> float:
        return measure("one", cores[:1])

    def apart() -> float:
        with ThreadPoolExecutor(2) as threads:
            return sum(threads.map(lambda core: measure(f"apart {core}", [core], batch=BATCH // 2), cores)) / 2

    found = ratios(lambda: measure("two", cores, workers=2) / 2, {"one": one}, rounds=rounds)["one"]
    ratio, limit = told("photos/s per core, 2 processes / 1", found), apart() / one()
    figure("photos/s per core, 2 processes / 1", round(ratio, 3), target=">= 0.9", met=ratio >= 0.9,
           baseline=f"{spread(found)}; two trainings that exchange nothing: {limit:.3f}")  # fmt: skip


def learning(folder: Path, *, num_train: int, epochs: int, seeds: int) -> None:
    """Prints how often two processes decide as one does, and the accuracy of both, over some seeds."""
    data = shapes(folder / "data", num_train=num_train)

    def learnt(seed: int, workers: int) -> tuple[np.ndarray, np.ndarray]:
        settings = {"epochs": epochs, "batch_size": 32, "lr": 5e-3}
        recipe = recipe_of({"backbone": "test_resnet", "size": 32, "seed": seed}, settings, side=32,
                           settings=[f"clean.folds={FOLDS}", f"clean.epochs={epochs}", *SHAPES])  # fmt: skip
        out = train(data, recipe, out=folder / f"{seed}-{workers}", workers=workers, fold=0)
        return judged(data, read_scores(out / "scores.parquet"))

    by_one, by_two = ([learnt(seed, workers) for seed in range(seeds)] for workers in (1, 2))
    flagged, flagged_by_two = ([each for each, _ in found] for found in (by_one, by_two))
    same = float(np.mean([np.mean(one == two) for one, two in zip(flagged, flagged_by_two, strict=True)]))
    usual = float(np.mean([np.mean(one == other) for one, other in itertools.combinations(flagged, 2)]))
    least = usual - noise(usual, len(flagged[0]))
    figure(f"same decision by 2 processes as by 1, share of photos, {seeds} seeds", round(same, 3), target=f">= {least:.3f}",
           met=same >= least, baseline=f"two seeds: {usual:.3f}; flagged: {np.mean(flagged):.3f}")  # fmt: skip
    accuracy, accuracy_by_two = (np.array([hits.mean() for _, hits in found]) for found in (by_one, by_two))
    error = (accuracy_by_two - accuracy).std(ddof=1) / math.sqrt(seeds)
    least = accuracy.mean() - STANDARD_ERRORS * error
    figure(f"accuracy by 2 processes, mean of {seeds} seeds", round(accuracy_by_two.mean(), 4), target=f">= {least:.4f}",
           met=bool(accuracy_by_two.mean() >= least),
           baseline=f"1 process: {accuracy.mean():.4f}, {accuracy.min():.3f} to {accuracy.max():.3f}")  # fmt: skip


def noise(share: float, count: int) -> float:
    """Two standard errors of the difference between two such shares of `count` photos."""
    return STANDARD_ERRORS * math.sqrt(2 * share * (1 - share) / count)


def shapes(folder: Path, *, num_train: int) -> Path:
    """Data version of drawn shapes: training photos, some with a wrong label, and half as many validation photos."""
    drawn = drawn_set(num_train=num_train, num_test=num_train // 2)
    given = symmetric(drawn.label, rate=WRONG, num_classes=len(drawn.classes), seed=0)
    target = np.concatenate([given, drawn.test_label])
    photos = [encoded(pixels, kind="PNG") for pixels in np.concatenate([drawn.photos, drawn.test_photos])]
    splits = ["train"] * num_train + ["val"] * (num_train // 2)
    return write_data(folder, photos, [drawn.classes[label] for label in target], splits)


def judged(data: Path, scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """True for each scored training photo that is flagged (N,), and for each validation photo that is recognised (M,)."""
    manifest = read_manifest(data)
    scored_by = np.full(len(scores), "fold 0", object)
    settings = Clean(rule="log_margin", floor_share=0)
    assessment = assess(manifest, scores, settings=settings)
    after = decide(manifest, scores, assessment, settings=settings, round=1, scored_by=scored_by)
    is_train = manifest.split[manifest.rows_of(scores.id)] == "train"
    return after.decision[after.rows_of(scores.id)][is_train] != "", scores.hit[~is_train]


if __name__ == "__main__":
    main()
