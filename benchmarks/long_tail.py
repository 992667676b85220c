"""Claim: a classifier that is balanced after training recognises a long tail of classes better.

    python benchmarks/long_tail.py --data grocery-noisy --weights mobilenetv2_100_qat.safetensors --truth grocery/manifest.parquet

--data is a folder with a manifest (Parquet: path, label, split) and its photos. They go through a frozen MobileNetV2 once (128 px,
and mirrored; kept in --cache), then heads are trained on the features: AdamW 1e-3, weight decay 1e-2, batches of 256, cosine to 0,
25 epochs, cross-entropy, one view at test. All choices are made on the validation split, none on the test split. Each row of
the table changes one thing. --truth trains on the true labels of another manifest instead of the given ones.

Without --data: 30 drawn clusters, 100 to 2 points a class, 20 % of them labelled as their neighbour; under a minute.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figure import figure, header
from numpy.typing import NDArray
from tail.sets import FeatureSet, drawn_set, read_set
from tail.training import embedded, out_of_sample, trained_head
from torch import Tensor
from torch.nn import functional

from models.errors import ModelError
from models.evaluation.accuracy import Accuracy, accuracy
from models.networks.network import Head
from models.recipe.config import Balance, Proof, Train
from models.training.classifiers import prior_bias, tau_normalise
from models.training.decoupling import Embedded, best_scored, choose_classifier

CLAIM = "a classifier that is balanced after training recognises a long tail better"
TRAIN = Train(epochs=25, batch_size=256, lr=1e-3, weight_decay=1e-2, warmup_epochs=0, backbone_lr_scale=0)
COLUMNS = ("top1", "mean_class", "head", "middle", "tail")
PLAIN = "as they lie"
BEST = 'balance.method="best"'

TRAININGS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "sampling_power=0.5 (square root)": {"sampling_power": 0.5},
    "sampling_power=0 (class-balanced)": {"sampling_power": 0.0},
    "progressive=true": {"progressive": True},
    "balanced_epochs=6": {"balanced_epochs": 6},
    "best_epochs=6, best_photos=10": {"best_epochs": 6, "best_photos": 10},
    'class_weights="inverse"': {"class_weights": "inverse"},
    'class_weights="effective", class_beta=0.9': {"class_weights": "effective", "class_beta": 0.9},
    "har=1": {"har": 1.0},
    "har=10": {"har": 10.0},
    "loss.params.logit_adjustment=1": {"logit_adjustment": 1.0},
}
BALANCINGS: dict[str, Balance] = {
    "tau=0.7, not chosen": Balance(method="tau"),
    "logit adjustment by 1, not chosen": Balance(method="logit_adjustment"),
    'balance.method="tau"': Balance(method="tau"),
    'balance.method="logit_adjustment"': Balance(method="logit_adjustment"),
    'balance.method="blend"': Balance(method="blend"),
    'balance.method="ncm"': Balance(method="ncm"),
    'balance.method="lws"': Balance(method="lws"),
    'balance.method="crt"': Balance(method="crt"),
    'balance.method="ncm", best_photos=10': Balance(method="ncm", best_photos=10),
    'balance.method="crt", best_photos=10': Balance(method="crt", best_photos=10),
    BEST: Balance(),
}


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line; exit code 0, or 2 if data or weights are refused."""
    args = parser().parse_args(words)
    torch.set_num_threads(1)
    header(CLAIM)
    try:
        photos = drawn_set() if args.data is None else read_set(
            args.data, args.manifest, truth=args.truth, weights=args.weights, cache=args.cache)  # fmt: skip
    except ModelError as error:
        if not isinstance(error, ValueError):
            raise
        print(error, file=sys.stderr)
        return 2
    if args.truth:
        photos = dataclasses.replace(photos, target=photos.true)
    report(photos, measure(photos, args.seeds or ([0, 1, 2, 3, 4] if args.data else [0, 1, 2])))
    return 0


def parser() -> argparse.ArgumentParser:
    """Parser of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, help="folder with manifest and photos; without: drawn clusters")
    made.add_argument("--manifest", default="longtail50-fine30")
    made.add_argument(
        "--weights", type=Path, default=Path("mobilenetv2_100.safetensors"), help="weights of mobilenetv2_100"
    )
    made.add_argument("--truth", type=Path, help="manifest with true labels, to train on these")
    made.add_argument("--cache", type=Path, default=Path(__file__).resolve().parents[1] / "build" / "features")
    made.add_argument("--seeds", nargs="+", type=int, help="seeds of weights and order")
    return made


def measure(photos: FeatureSet, seeds: Sequence[int]) -> dict[str, list[Accuracy]]:
    """Accuracies on the test split by method, one per seed."""
    found: dict[str, list[Accuracy]] = {}
    for seed in seeds:
        score, errors = out_of_sample(photos, settings=TRAIN, seed=seed)
        for name, changes in TRAININGS.items():
            of_loss = {key: changes[key] for key in ("logit_adjustment",) if key in changes}
            settings = dataclasses.replace(TRAIN, **{key: changes[key] for key in changes if key not in of_loss})
            head = trained_head(photos, score=score, errors=errors, settings=settings, params=of_loss, seed=seed)
            found.setdefault(name, []).append(judged(photos, embedded(head, photos, "test"), head.classifier.weight))
            if name == PLAIN:
                for way, figures in balanced(photos, head, score, seed=seed):
                    found.setdefault(way, []).append(figures)
    return {name: found[name] for name in (*TRAININGS, *BALANCINGS)}


def balanced(
    photos: FeatureSet, head: Head, score: NDArray[np.float32], *, seed: int
) -> Iterator[tuple[str, Accuracy]]:
    """Accuracies of the same head with its classifier balanced by each method."""
    parts = {split: embedded(head, photos, split) for split in ("train", "val", "test")}
    rows, weight, counts = photos.rows("train"), head.classifier.weight.detach(), photos.counts
    known, validation = (
        Embedded(parts["train"], photos.target[rows]),
        Embedded(parts["val"], photos.target[photos.rows("val")]),
    )
    for name, settings in BALANCINGS.items():
        if name.startswith("tau="):
            yield name, judged(photos, parts["test"], tau_normalise(weight, 0.7))
        elif name.startswith("logit"):
            yield name, judged(photos, parts["test"], weight, prior_bias(counts, 1.0))
        else:
            learnt = best_scored(known, score[rows], weight, count=settings.best_photos)
            chosen, *_ = choose_classifier(weight, learnt, validation, counts=counts, settings=settings,
                                           confidence=Proof().confidence, seed=seed)  # fmt: skip
            yield name, judged(photos, parts["test"], chosen.option.rows, chosen.option.bias)


def judged(photos: FeatureSet, embedding: Tensor, rows: Tensor, bias: Tensor | None = None) -> Accuracy:
    """Accuracy on the test split."""
    ranked = functional.linear(embedding, rows.detach(), bias).topk(min(5, photos.num_classes)).indices.numpy()
    return accuracy(ranked, photos.target[photos.rows("test")], train_counts=photos.counts)


def report(photos: FeatureSet, found: dict[str, list[Accuracy]]) -> None:
    """Prints the table in %, mean and standard deviation over the seeds, and the figure of the claim."""
    counts, seeds = photos.counts, len(found[PLAIN])
    judging = f"{len(photos.rows('val'))} validation, {len(photos.rows('test'))} test"
    print(f"\n{photos.name}: {counts.sum()} training samples, {counts.max()} to {counts.min()} a class, "
          f"{photos.num_classes} classes; {judging}; {seeds} seeds\n")  # fmt: skip
    print("| | top-1 | mean class | head | middle | tail |\n|---|--:|--:|--:|--:|--:|")
    for name, figures in found.items():
        print(f"| {name} | {' | '.join(_cell([getattr(each, column) for each in figures]) for column in COLUMNS)} |")
    print()
    before, after = (statistics.mean(each.mean_class for each in found[name]) for name in (PLAIN, BEST))
    figure(f"mean-class accuracy, balanced after training, over {seeds} seeds", round(after, 4), target="> baseline",
           met=after > before, baseline=round(before, 4))  # fmt: skip
    before, after = (statistics.mean(each.top1 for each in found[name]) for name in (PLAIN, BEST))
    figure("top-1 accuracy, the same", round(after, 4), target=">= baseline - 0.01", met=after >= before - 0.01,
           baseline=round(before, 4))  # fmt: skip


def _cell(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * spread:.1f}"


if __name__ == "__main__":
    sys.exit(main())
