"""Claim: 200 looks at the photos that are worth most raise accuracy more than 200 looks at the worst scores.

    python benchmarks/review_budget.py --data grocery-noisy --weights FILE [--seeds 0 1 2]

Labels are scored as in find_errors.py. A person, who is always right, looks at K photos in one of three orders: those that
models.cleaning.budget takes, the worst scores, and at random. Then label issues are dropped, but for those that were looked at,
which count with their true label, and a ridge classifier on the same features (closed form, all classes equal, both views) is
measured on the test photos. Nothing is tuned here. Without --data: drawn clusters.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from figure import figure, header
from find_errors import CACHE, out_of_fold
from noisy.shelves import Shelf
from numpy.typing import NDArray
from opponents import after
from tail.sets import FeatureSet, drawn_set, read_set

from models.cleaning import find_label_errors, label_quality
from models.cleaning.budget import worth_looking_at

SETS = ("fine30", "longtail50-fine30")
COUNTS = (0, 50, 200, 1000)
AT = 200  # looks at which the gain counts
GAIN = 1.3  # times that of the worst scores
WORTH, WORST, RANDOM = "worth looking at", "worst score first", "at random"


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of manifests; without: drawn clusters")
    parser.add_argument("--truth", type=Path, help="manifest of true labels; default DIR/../grocery/manifest.parquet")
    parser.add_argument("--weights", type=Path, default=Path("mobilenetv2_100.safetensors"), help="of mobilenetv2_100")
    parser.add_argument("--sets", nargs="+", default=list(SETS), help="names of manifests")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of folds, heads and the random order")
    parser.add_argument("--cache", type=Path, default=CACHE / "features", help="folder for features")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    header("200 looks at the photos that are worth most raise accuracy more than 200 looks at the worst scores")
    truth = args.data and (args.truth or args.data.parent / "grocery" / "manifest.parquet")
    for name in args.sets if args.data else ["drawn clusters"]:
        photos = (read_set(args.data, name, truth=truth, weights=args.weights, cache=args.cache) if args.data
                  else drawn_set(noise=0.3))  # fmt: skip
        curves = [curve(photos, seed=seed) for seed in args.seeds]
        report(name, {order: np.mean([each[order] for each in curves], axis=0) for order in curves[0]}, seeds=len(curves),
               has_target=args.data is not None)  # fmt: skip


def curve(photos: FeatureSet, *, seed: int) -> dict[str, NDArray[np.float64]]:
    """Mean-class accuracy after each number of looks, by order."""
    rows = photos.rows("train")
    assert photos.true is not None
    given, true = photos.target[rows], photos.true[rows]
    views = photos.views[:, torch.from_numpy(rows)].numpy()
    both = (views[0], views[1])
    probs = out_of_fold(Shelf(photos.name, given, true, (both,)), both, seed=seed)
    looks = views.sum(0)
    quality, issue = label_quality(given, probs, looks), find_label_errors(given, probs, looks)
    others = probs.copy()
    others[np.arange(len(given)), given] = -1
    orders = {
        WORTH: worth_looking_at(given, quality, others.argmax(1), count=max(COUNTS), is_issue=issue),
        WORST: np.argsort(quality, kind="stable"),
        RANDOM: np.random.default_rng(seed).permutation(len(given)),
    }
    found = {}
    for order, taken in orders.items():
        found[order] = np.array([accuracy(photos, *looked_at(given, true, issue, taken[:count])) for count in COUNTS])
        print(f"  seed {seed}, {order}: {np.round(100 * found[order], 1)}", flush=True)
    return found


def looked_at(
    given: NDArray[np.int64], true: NDArray[np.int64], issue: NDArray[np.bool_], taken: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Labels (n,) after the looks, and which photos (n,) are learnt from."""
    label, kept = given.copy(), ~issue
    label[taken], kept[taken] = true[taken], True
    return label, kept


def accuracy(photos: FeatureSet, label: NDArray[np.int64], kept: NDArray[np.bool_]) -> float:
    """Mean-class accuracy on the test photos, learnt from the photos kept."""
    rows, test, features = photos.rows("train")[kept], photos.rows("test"), photos.views.sum(0).numpy()
    return after.accuracy(features[rows], label[kept], features[test], photos.target[test])


def report(name: str, curves: Mapping[str, NDArray[np.float64]], *, seeds: int, has_target: bool) -> None:
    """Prints the curve of each order, and the gain at AT looks."""
    print(f"\n{name}: mean-class accuracy in %, mean of {seeds} seeds\n\n| order | {' | '.join(map(str, COUNTS))} |")
    print("|---|" + "--:|" * len(COUNTS))
    for order, values in curves.items():
        print(f"| {order} | {' | '.join(f'{100 * value:.1f}' for value in values)} |")
    gains = {order: 100 * float(values[COUNTS.index(AT)] - values[0]) for order, values in curves.items()}
    figure(f"{name}, points gained by {AT} looks", round(gains[WORTH], 2),
           target=f">= {GAIN * gains[WORST]:.2f}" if has_target else "none",
           met=not has_target or gains[WORTH] >= GAIN * gains[WORST], baseline=round(gains[WORST], 2))  # fmt: skip


if __name__ == "__main__":
    main()
