"""Claim: one rule finds wrong labels better than every known rule, and its own cut is where its ranking is best.

    python benchmarks/find_errors.py --data grocery-noisy --weights mobilenetv2_100_qat.safetensors \\
        --large grocery224 --encoders mobilenetv2_100_qat.safetensors tf_efficientnet_lite0.safetensors \\
        tf_efficientnet_lite2.safetensors --human cifar --garments fashion_mnist [--seeds 0 1 2 3 4] [--cache DIR]

--data holds NAME.parquet (columns path, label, split; paths relative to it) for each kind of error. --truth holds the same
photos with their true labels, matched by file name; the set `clean` is these. A head is trained on frozen features
(--weights, 128 px) in five folds of eight epochs, and all rules score the same out-of-fold probabilities and features.
--large holds the same photos at 224 px, which --encoders look at together: their heads' probabilities are averaged, and the
default rule weighs their features. --human holds CIFAR-10 with the labels that people gave it, --garments Fashion-MNIST, on
whose labels noise is drawn; noisy/photos.py has both layouts, and --photos of them go through --weights at 160 px. Features
stay in --cache. Nothing is tuned here: rules run with their defaults.

Without --data it draws clusters with errors of the same kinds, in ten seconds; their figures have no targets.
"""

from __future__ import annotations

import argparse
import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from figure import figure, header
from noisy import shelves
from noisy.shelves import LARGE_PX, PHOTO_PX, SETS, Shelf, Views
from numpy.typing import NDArray
from torch.nn import functional

from models.cleaning import DEFAULT, HALF, RULES, label_quality, worst
from models.cleaning.votes import directions
from models.data.samplers import folds
from models.evaluation.bootstrap import auroc
from models.export.discriminant import inverse_root
from models.networks.network import Head

CACHE = Path(__file__).resolve().parents[1] / "build"
NUM_FOLDS, EPOCHS, BATCH, LR, WEIGHT_DECAY = 5, 8, 256, 1e-3, 1e-2
TARGETS = {"sym40": 94, "fine30": 84, "instance35": 89, "longtail50-fine30": 74}  # F1 in %
LARGE_TARGETS = {"sym40": 96, "fine30": 90, "instance35": 92, "longtail50-fine30": 80}
HUMAN = ("aggre", "random1", "worst", "clean")
OVER_CLEANLAB = {"aggre": 3, "worst": 8}  # points of F1 over cleanlab's default
RATIO, FLAGGED, TAIL = 0.99, 1.0, 1.5  # F1 over the best cut's; % of right labels flagged; worst decile over median
CLEANLAB = "cleanlab default"
FEW = 5  # right labels of a class, below which its share lost says little


@dataclass(frozen=True)
class Found:
    """Figures of one rule on one set of probabilities, in %.

    best: F1 of the best cut of the same ranking; flagged: share of all labels; f1_floor: F1 with the floors.
    lost_worst, lost_median: right labels flagged, with the floors, of the worst tenth of the classes and the median class.
    """

    f1: float
    best: float
    auroc: float
    flagged: float
    f1_floor: float
    lost_worst: float
    lost_median: float
    emptied: float


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of manifests; without: drawn clusters")
    parser.add_argument("--truth", type=Path, help="manifest of true labels; default DIR/../grocery/manifest.parquet")
    parser.add_argument("--weights", type=Path, help="MobileNetV2 (timm's mobilenetv2_100), .safetensors")
    parser.add_argument("--large", type=Path, help="folder of the same photos at 224 px, for --encoders")
    parser.add_argument("--encoders", type=Path, nargs="+", default=[], help="weights of backbones, named as timm does")
    parser.add_argument("--human", type=Path, help="folder of CIFAR-10 with human labels")
    parser.add_argument("--garments", type=Path, help="folder of Fashion-MNIST")
    parser.add_argument(
        "--photos", type=int, default=10_000, help="photos of --human, from the start, and of --garments"
    )
    parser.add_argument("--sets", nargs="+", default=SETS, help="names of manifests; clean: the true labels")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="seeds of folds and heads")
    parser.add_argument("--whiten", action="store_true", help="also the default rule on whitened features")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for features")
    args = parser.parse_args(words)
    if (args.data or args.human or args.garments) and not args.weights:
        parser.error("--weights: features need a file of MobileNetV2 weights; give one, or leave all folders out")
    torch.set_num_threads(1)
    header("one rule finds wrong labels better than every known rule, and its own cut is where its ranking is best")
    if not importlib.util.find_spec("cleanlab"):
        print("cleanlab is not installed here, so its column and the comparison are missing: pip install cleanlab")
    for shelf in asked(args):
        found: dict[str, list[Found]] = {}
        for seed in args.seeds:
            probs = np.mean([out_of_fold(shelf, views, seed=seed) for views in shelf.encoders], axis=0)
            for rule, one in judged(shelf, probs, whiten=args.whiten).items():
                found.setdefault(rule, []).append(one)
        report(shelf, found)


def asked(args: argparse.Namespace) -> Iterator[Shelf]:
    """Yields every set that the command line asks for, or drawn ones."""
    if args.data:
        yield from shelves.planted(args, args.data, [args.weights], PHOTO_PX, "128 px", TARGETS)
    if args.data and args.large:
        kind = f"{len(args.encoders)} at 224 px"
        yield from shelves.planted(args, args.large, args.encoders, LARGE_PX, kind, LARGE_TARGETS)
    if args.human:
        yield from shelves.human(args, HUMAN)
    if args.garments:
        yield from shelves.garments(args)
    if not args.data and not args.human and not args.garments:
        yield from shelves.drawn()


def out_of_fold(shelf: Shelf, views: Views, *, seed: int) -> NDArray[np.float32]:
    """(N, C) probabilities by lightly trained heads that did not see the photo, mean of both views."""
    ids = np.random.default_rng(seed).permutation(len(shelf.given)).astype(str).astype(object)
    fold = folds(shelf.given, ids, num_folds=NUM_FOLDS)
    probs = np.zeros((len(shelf.given), shelf.num_classes), np.float32)
    for held_out in range(NUM_FOLDS):
        head = trained(shelf, views, np.flatnonzero(fold != held_out), seed=NUM_FOLDS * seed + held_out)
        rows = fold == held_out
        with torch.inference_mode():
            each = [head(torch.from_numpy(view[rows])).logits.softmax(1) for view in views]
        probs[rows] = torch.stack(each).mean(0).numpy()
    return probs


def trained(shelf: Shelf, encoder: Views, rows: NDArray[np.int64], *, seed: int) -> Head:
    """A head after EPOCHS epochs of cross-entropy on these photos, each seen as it is or mirrored."""
    torch.manual_seed(seed)
    views = torch.stack([torch.from_numpy(view[rows]) for view in encoder])
    target = torch.from_numpy(shelf.given[rows])
    head = Head(views.shape[2], num_classes=shelf.num_classes)
    optimiser = torch.optim.AdamW(head.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * -(-len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(rows)).tensor_split(-(-len(rows) // BATCH)):
            x = views[torch.randint(2, (len(batch),)), batch]
            loss = functional.cross_entropy(head(x).logits, target[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return head.eval()


def judged(shelf: Shelf, probs: NDArray[np.float32], *, whiten: bool = False) -> dict[str, Found]:
    """Figures of every rule on the same probabilities; whiten: and of the default on whitened features."""
    features = [plain + mirrored for plain, mirrored in shelf.encoders]
    tried = [(rule, rule, features) for rule in RULES.components]
    if whiten:
        tried.append((f"{DEFAULT}, whitened", DEFAULT, [whitened(each) for each in features]))
    made = {}
    for name, rule, seen in tried:
        quality = label_quality(shelf.given, probs, seen, rule=rule, names=shelf.names)
        dropped = worst(shelf.given, quality, threshold=HALF)
        made[name] = measured(shelf, quality < HALF, -quality, dropped)
    if importlib.util.find_spec("cleanlab"):
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores

        with warnings.catch_warnings(action="ignore"):  # warnings about classes with few photos, once per class
            issues = find_label_issues(shelf.given, probs, n_jobs=1)
        made[CLEANLAB] = measured(shelf, issues, -get_label_quality_scores(shelf.given, probs), issues)
    return made


def whitened(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, d) directions from the mean of all, times the inverse root of their covariance, which is shrunk half-way."""
    unit = directions(features, features.mean(0))
    root = inverse_root(np.cov(unit.T, bias=True))
    return unit if root is None else np.asarray(unit @ root, np.float32)


def measured(
    shelf: Shelf, mask: NDArray[np.bool_], suspicion: NDArray[np.floating], dropped: NDArray[np.bool_]
) -> Found:
    """mask: called wrong; dropped: the same with the floors."""
    clean = ~shelf.wrong
    left = np.bincount(shelf.given[~dropped], minlength=shelf.num_classes)
    area = 100 * auroc(suspicion[shelf.wrong], suspicion[clean]) if shelf.wrong.any() else float("nan")
    emptied = (left == 0) & (np.bincount(shelf.given, minlength=len(left)) > 0)
    best, flagged = best_f1(suspicion, shelf.wrong), 100 * float(mask.mean())
    return Found(f1(mask, shelf.wrong), best, area, flagged, f1(dropped, shelf.wrong), *lost(shelf, dropped),
                 float(emptied.sum()))  # fmt: skip


def lost(shelf: Shelf, dropped: NDArray[np.bool_]) -> tuple[float, float]:
    """Right labels dropped, in %: mean of the worst tenth of the classes, and median, of those with five or more."""
    right = np.bincount(shelf.given[~shelf.wrong], minlength=shelf.num_classes)
    gone = np.bincount(shelf.given[~shelf.wrong & dropped], minlength=shelf.num_classes)
    share = np.sort(100 * gone[right >= FEW] / right[right >= FEW])
    return float(share[-max(1, len(share) // 10) :].mean()), float(np.median(share))


def best_f1(suspicion: NDArray[np.floating], wrong: NDArray[np.bool_]) -> float:
    """Highest F1 in % of all cuts of this ranking."""
    found = np.cumsum(wrong[np.argsort(-suspicion, kind="stable")])
    return float(200 * (found / (np.arange(1, len(wrong) + 1) + max(1, found[-1]))).max())


def f1(called: NDArray[np.bool_], wrong: NDArray[np.bool_]) -> float:
    """F1 in %."""
    return 200 * float((called & wrong).sum()) / max(1, int(called.sum() + wrong.sum()))


def report(shelf: Shelf, found: dict[str, list[Found]]) -> None:
    """Prints the table of all rules, then the figures of the default."""
    wrong, seeds = 100 * float(shelf.wrong.mean()), len(found[DEFAULT])
    print(
        f"\n{shelf.kind}, {shelf.name}: {len(shelf.given)} labels, {wrong:.1f} % wrong; all in %, mean of {seeds} seeds\n"
    )
    print("| rule | F1 | best F1 | AUROC | flagged | F1 with floors | right labels lost, worst tenth / median class |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for rule, ones in found.items():
        one = mean_of(ones)
        print(f"| `{rule}` | {one.f1:.1f} | {one.best:.1f} | {one.auroc:.1f} | {one.flagged:.1f} | {one.f1_floor:.1f} | "
              f"{one.lost_worst:.1f} / {one.lost_median:.1f} |", flush=True)  # fmt: skip
    figures(shelf, mean_of(found[DEFAULT]), mean_of(found[CLEANLAB]) if CLEANLAB in found else None)


def figures(shelf: Shelf, ours: Found, theirs: Found | None) -> None:
    """Prints the figures of the default rule; drawn sets have no targets."""
    name, base = f"{shelf.kind}, {shelf.name}, {DEFAULT}", theirs and round(theirs.f1, 2)
    real = shelf.kind != "drawn"
    bound(f"{name}, classes emptied", ours.emptied, most=0)
    if not shelf.wrong.any():
        bound(f"{name}, flagged %", ours.flagged, most=FLAGGED)
        return
    target = shelf.targets.get(shelf.name)
    if theirs and shelf.name in OVER_CLEANLAB and real:
        target = round(theirs.f1 + OVER_CLEANLAB[shelf.name], 2)
    figure(f"{name}, F1 %", round(ours.f1, 2), target=f">= {target}" if target else "none",
           met=target is None or ours.f1 >= target, baseline=base)  # fmt: skip
    ratio = ours.f1 / ours.best
    figure(f"{name}, F1 / best F1 of the ranking", round(ratio, 3), target=f">= {RATIO}" if real else "none",
           met=not real or ratio >= RATIO, baseline=theirs and round(theirs.f1 / theirs.best, 3))  # fmt: skip
    bound(f"{name}, right labels lost: worst tenth / median class", ours.lost_worst / max(ours.lost_median, 1.0),
          most=TAIL if real else None)  # fmt: skip


def bound(name: str, value: float, *, most: float | None) -> None:
    """Prints a figure that should be small."""
    figure(name, round(value, 2), target="none" if most is None else f"<= {most}", met=most is None or value <= most,
           baseline=None)  # fmt: skip


def mean_of(found: Sequence[Found]) -> Found:
    """Means over the seeds."""
    return Found(**{each.name: float(np.mean([getattr(one, each.name) for one in found])) for each in fields(Found)})


if __name__ == "__main__":
    main()
