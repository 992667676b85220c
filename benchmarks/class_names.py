"""Claim: where errors follow the names of the classes, names find more of them; elsewhere they change nothing.

    python benchmarks/class_names.py --data grocery-noisy --weights mobilenetv2_100_qat.safetensors \\
        [--sets NAME ...] [--seeds 0 1 2]

Labels are scored by the default rule on the folds and features of find_errors.py: without names, with those of the classes,
and with the same names shuffled among the classes. The tilt is how far the rule leans on names; 0: not at all. Without --data:
clusters of products named by brand and kind, with errors among products of one kind or of one brand, and at random; and at
random with vectors of the names, as an image-text encoder gives them: near the centre of their class, far from it, or those of
other classes. Nothing is tuned here.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from figure import figure, header
from find_errors import CACHE, best_f1, f1, out_of_fold
from noisy.shelves import PHOTO_PX, SETS, Shelf, planted
from numpy.typing import NDArray

from models.cleaning import HALF, label_quality
from models.cleaning.evidence import gather_evidence
from models.cleaning.mixture import fitted
from models.cleaning.rule_input import gather
from models.cleaning.rules import Posterior
from models.evaluation.bootstrap import auroc

WITHOUT, WITH, SHUFFLED = "without names", "with names", "names shuffled"
HARM = 0.2  # points of F1 that names may cost where they say nothing
GAIN = 0.5  # and that they gain at least where errors follow them
BRANDS = ("Arla", "Valio", "Oatly", "Alpro", "Yoggi", "Bravo", "Sproud", "Skyr")
KINDS = ("Oat Milk", "Whole Milk", "Sour Cream", "Butter", "Apple Juice", "Kefir", "Oatghurt", "Vanilla Yoghurt")
EACH = 8  # drawn photos of a class
WIDTH = 64  # of drawn features
VECTORS = {"good": 1.0, "poor": 3.0}  # error of drawn vectors, as a share of the length of a centre
HARMLESS = 0.5  # points of F1 that vectors of other classes may cost


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of manifests; without: drawn clusters")
    parser.add_argument("--truth", type=Path, help="manifest of true labels; default DIR/../grocery/manifest.parquet")
    parser.add_argument("--weights", type=Path, help="MobileNetV2 (timm's mobilenetv2_100), .safetensors")
    parser.add_argument("--sets", nargs="+", default=SETS, help="names of manifests; clean: the true labels")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of folds, heads and shuffled names")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for features")
    args = parser.parse_args(words)
    if args.data and not args.weights:
        parser.error("--weights: features need a file of MobileNetV2 weights; give one, or leave --data out")
    torch.set_num_threads(1)
    header("where errors follow the names of the classes, names find more of them; elsewhere they change nothing")
    print("\n| labels | names | F1 | best F1 | AUROC | flagged | tilt, least to most |\n|---|---|--:|--:|--:|--:|--:|")
    found: dict[str, list[NDArray[np.float64]]] = {}
    for shelf, seed in asked(args):
        found.setdefault(shelf.name, []).append(measured(shelf, seed=seed))
    for name, ones in found.items():
        report(name, np.array(ones), is_clean=name == "clean")
    if not args.data:
        report_vectors([with_vectors(seed) for seed in args.seeds])


def asked(args: argparse.Namespace) -> Iterator[tuple[Shelf, int]]:
    """Yields each set with each seed; drawn sets are drawn afresh."""
    if args.data:
        for shelf in planted(args, args.data, [args.weights], PHOTO_PX, "128 px", {}):
            yield from ((shelf, seed) for seed in args.seeds)
        return
    for seed in args.seeds:
        yield from ((shelf, seed) for shelf in drawn_shelves(seed))


def measured(shelf: Shelf, *, seed: int) -> NDArray[np.float64]:
    """(3, 5) F1, best F1, AUROC, share flagged in %, and the tilt: without names, with them, and with them shuffled."""
    assert shelf.names
    probs = out_of_fold(shelf, shelf.encoders[0], seed=seed)
    shuffled = tuple(np.random.default_rng(seed).permutation(shelf.names).tolist())
    rows = np.array([scored(shelf, probs, names) for names in (None, shelf.names, shuffled)])
    for kind, row in zip((WITHOUT, WITH, SHUFFLED), rows, strict=True):
        print(f"| {shelf.name}, seed {seed} | {kind} | {' | '.join(f'{value:.2f}' for value in row)} |", flush=True)
    return rows


def scored(shelf: Shelf, probs: NDArray[np.float32], names: Sequence[str] | None) -> tuple[float, ...]:
    """Figures of the default rule with these names."""
    features = sum(shelf.encoders[0])
    quality = label_quality(shelf.given, probs, features, names=names)
    wrong, flagged = shelf.wrong, quality < HALF
    area = 100 * auroc(-quality[wrong], -quality[~wrong]) if wrong.any() else float("nan")
    data = gather(shelf.given, probs, features, names=names)
    rule = Posterior()
    tilt = fitted(gather_evidence(data, count=rule.count, ridge=rule.ridge, most=rule.most))[1].tilt
    return f1(flagged, wrong), best_f1(-quality, wrong), area, 100 * float(flagged.mean()), tilt


def report(name: str, found: NDArray[np.float64], *, is_clean: bool) -> None:
    """Prints the means over the seeds, and what names gain and cost. found: (seeds, 3, 5)."""
    for number, kind in enumerate((WITHOUT, WITH, SHUFFLED)):
        means, tilt = found[:, number, :4].mean(axis=0), found[:, number, 4]
        print(f"| {name} | {kind} | {' | '.join(f'{value:.1f}' for value in means)} | "
              f"{tilt.min():.1f} to {tilt.max():.1f} |", flush=True)  # fmt: skip
    column, what = (3, "share flagged") if is_clean else (0, "F1")
    base, named, shuffled = found[:, :, column].mean(axis=0)
    least = GAIN if name == "one kind" else -HARM
    figure(f"{name}, names change {what} by, points", round(named - base, 2),
           target=f"<= {HARM}" if is_clean else f">= {least}", baseline=round(base, 2),
           met=bool(named - base <= HARM if is_clean else named - base >= least))  # fmt: skip
    figure(f"{name}, shuffled names change {what} by, points", round(shuffled - base, 2),
           target=f"within {HARM}", met=bool(abs(shuffled - base) <= HARM), baseline=round(base, 2))  # fmt: skip


def with_vectors(seed: int) -> dict[str, tuple[float, float, float]]:
    """F1, best F1 and AUROC of drawn errors at random, by vectors of names."""
    *_, shelf = drawn_shelves(seed)
    probs, features = out_of_fold(shelf, shelf.encoders[0], seed=seed), sum(shelf.encoders[0])
    draw, centres = np.random.default_rng(seed + 1), drawn_centres(seed)
    vectors = {name: centres + error * draw.standard_normal(centres.shape) for name, error in VECTORS.items()}
    kinds = {"none": None} | vectors | {"of other classes": draw.permutation(vectors["good"])}
    found = {}
    for kind, each in kinds.items():
        quality = label_quality(shelf.given, probs, features, name_vectors=each)
        found[kind] = (f1(quality < HALF, shelf.wrong), best_f1(-quality, shelf.wrong),
                       100 * auroc(-quality[shelf.wrong], -quality[~shelf.wrong]))  # fmt: skip
    return found


def report_vectors(found: Sequence[dict[str, tuple[float, float, float]]]) -> None:
    """Prints the means over the seeds, and what vectors of names gain and cost."""
    print("\n| vectors of names | F1 | best F1 | AUROC |\n|---|--:|--:|--:|")
    means = {kind: np.mean([one[kind] for one in found], axis=0) for kind in found[0]}
    for kind, values in means.items():
        print(f"| {kind} | {' | '.join(f'{value:.1f}' for value in values)} |", flush=True)
    base = means["none"][0]
    for kind in ("good", "poor", "of other classes"):
        change, least = means[kind][0] - base, 0.0 if kind == "good" else -HARMLESS
        figure(f"vectors of names, {kind}, change F1 by, points", round(change, 2), target=f">= {least}",
               baseline=round(base, 2), met=bool(change >= least))  # fmt: skip


def drawn_centres(seed: int) -> NDArray[np.float64]:
    """(64, d) centres of the drawn products."""
    return np.random.default_rng(seed).standard_normal((len(BRANDS) * len(KINDS), WIDTH))


def drawn_shelves(seed: int) -> Iterator[Shelf]:
    """Clusters of 64 products: 30 % of the labels are of another brand of the same kind, of another kind, or of any product."""
    names = tuple(f"{brand} {kind}" for brand in BRANDS for kind in KINDS)
    draw, num = np.random.default_rng(seed), len(names)
    centres = draw.standard_normal((num, WIDTH))  # those of drawn_centres
    for errors in ("one kind", "one brand", "random"):
        true = np.repeat(np.arange(num), EACH)
        features = (centres[true] + 1.5 * draw.standard_normal((len(true), WIDTH))).astype(np.float32)
        brand, kind = np.divmod(true, len(KINDS))
        other = {
            "one kind": (brand + draw.integers(1, len(BRANDS), len(true))) % len(BRANDS) * len(KINDS) + kind,
            "one brand": brand * len(KINDS) + (kind + draw.integers(1, len(KINDS), len(true))) % len(KINDS),
            "random": (true + draw.integers(1, num, len(true))) % num,
        }[errors]
        yield Shelf(
            errors, np.where(draw.random(len(true)) < 0.3, other, true), true, ((features, features),), names=names
        )


if __name__ == "__main__":
    main()
