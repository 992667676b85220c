"""Claim: a training technique, with the setting that validation photos choose, pays under wrong labels.

    python benchmarks/techniques.py --data grocery-noisy --manifest fine30 --weights mobilenetv2_100_qat.safetensors

Heads are trained on features of a frozen MobileNetV2 as in long_tail.py, whose data and options these are: AdamW 1e-3, weight
decay 1e-2, batches of 256, cosine to 0, 25 epochs, one view at test. A technique has several settings; the one with the largest
mean over the seeds on the validation split is reported on the test split, by mean-class accuracy. Nothing is chosen on the
test split.

Without --data: the drawn clusters of long_tail.py.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from figure import figure, header
from tail.sets import FeatureSet, drawn_set, read_set
from tail.training import embedded, trained_head

from models.errors import ManifestError, WeightsMismatch
from models.evaluation.accuracy import accuracy
from models.recipe.config import Recipe, from_dict
from models.recipe.tables import set_key

CLAIM = "a training technique with its setting chosen on validation photos costs no accuracy under wrong labels"
TRAIN = {"epochs": 25, "batch_size": 256, "lr": 1e-3, "weight_decay": 1e-2, "warmup_epochs": 0, "backbone_lr_scale": 0}
PLAIN = "plain"
ARCFACE = "members.0.head=arcface"
ANGLES = [
    f"{ARCFACE} members.0.scale={scale} members.0.margin_rad={margin}" for scale in (4, 8, 16) for margin in (0, 0.3)
]

TECHNIQUES: dict[str, list[str]] = {
    PLAIN: [""],
    "label smoothing": [f"loss.params.label_smoothing={s}" for s in (0.1, 0.3)],
    "mixup": [f"augment.mixup={alpha}" for alpha in (1, 4, 16)],
    "EMA": [f"train.ema={decay}" for decay in (0.98, 0.995)],
    "soup": [f"train.soup_epochs={n}" for n in (5, 15)],
    "ArcFace": ANGLES,
    "sub-centre ArcFace": [f"{angle} members.0.centres=3" for angle in ANGLES],
}


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line; exit code 0, or 2 if data or weights are refused."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, help="folder with manifest and photos; without: drawn clusters")
    made.add_argument("--manifest", default="fine30")
    made.add_argument(
        "--weights", type=Path, default=Path("mobilenetv2_100.safetensors"), help="weights of mobilenetv2_100"
    )
    made.add_argument("--cache", type=Path, default=Path(__file__).resolve().parents[1] / "build" / "features")
    made.add_argument("--loss", default="ce", help="label smoothing works with ce only")
    made.add_argument(
        "--only",
        nargs="+",
        choices=list(TECHNIQUES),
        default=list(TECHNIQUES),
        help="techniques to measure beside plain",
    )
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of weights and order")
    args = made.parse_args(words)
    torch.set_num_threads(1)
    header(CLAIM)
    try:
        photos = drawn_set() if args.data is None else read_set(
            args.data, args.manifest, truth=None, weights=args.weights, cache=args.cache)  # fmt: skip
    except (ManifestError, WeightsMismatch) as error:
        print(error, file=sys.stderr)
        return 2
    report(photos, {name: TECHNIQUES[name] for name in (PLAIN, *args.only)}, loss=args.loss, seeds=args.seeds)
    return 0


def report(photos: FeatureSet, asked: dict[str, list[str]], *, loss: str, seeds: Sequence[int]) -> None:
    """Prints a row for each technique in %, mean and standard deviation over the seeds; then the figures."""
    print(f"\n{photos.name}, {loss}, mean-class accuracy in %, {len(seeds)} seeds\n")
    print("| technique | chosen | validation | test |\n|---|---|--:|--:|")
    found = {}
    for name, settings in asked.items():
        if name == "label smoothing" and loss != "ce":
            continue
        tried = [[measured(photos, recipe(loss, each), seed=seed) for seed in seeds] for each in settings]
        best = max(range(len(tried)), key=lambda i: statistics.mean(validation for validation, _ in tried[i]))
        cells = [_cell([one[part] for one in tried[best]]) for part in (0, 1)]
        print(f"| {name} | {settings[best].replace(ARCFACE, '').strip()} | {' | '.join(cells)} |", flush=True)
        found[name] = statistics.mean(test for _, test in tried[best])
    print()
    for name, value in found.items():
        if name != PLAIN:
            figure(f"{name}, mean-class accuracy over {len(seeds)} seeds", round(value, 4), target=">= plain - 0.01",
                   met=value >= found[PLAIN] - 0.01, baseline=round(found[PLAIN], 4))  # fmt: skip


def recipe(loss: str, setting: str) -> Recipe:
    """Recipe with keys set as by --set, separated by spaces."""
    tables = {"name": "techniques", "members": [{}], "loss": {"name": loss}, "train": dict(TRAIN)}
    for override in setting.split():
        set_key(tables, override)
    return from_dict(tables)


def measured(photos: FeatureSet, recipe: Recipe, *, seed: int) -> tuple[float, float]:
    """Mean-class accuracy on the validation and on the test split."""
    head = trained_head(photos, score=np.zeros(len(photos.target), np.float32), errors=np.ones(photos.num_classes),
                        settings=recipe.train, loss_name=recipe.loss.name, params=recipe.loss.params, seed=seed,
                        member=recipe.members[0], augment=recipe.augment)  # fmt: skip
    parts = []
    for split in ("val", "test"):
        ranked = (embedded(head, photos, split) @ head.classifier.weight.detach().T).argmax(1, keepdim=True).numpy()
        parts.append(accuracy(ranked, photos.target[photos.rows(split)], train_counts=photos.counts).mean_class)
    return parts[0], parts[1]


def _cell(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * spread:.1f}"


if __name__ == "__main__":
    sys.exit(main())
