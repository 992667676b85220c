"""Claim: the default rule finds labels that people got wrong better than cleanlab's default, on the same probabilities.

    PYTHONPATH=.:benchmarks python benchmarks/human_errors.py --data cifar --weights mobilenetv2_100_qat.safetensors

DIR holds CIFAR-10 with human labels (CIFAR-10N; see noisy/photos.py). Photos go through a frozen MobileNetV2 once, at 160 px
and mirrored (kept in build/), and the labels of the first --photos of them are scored: a head is trained in five folds of
eight epochs, and all rules score the same out-of-fold probabilities, each with its own mask. Nothing is tuned here.
Without --data: drawn clusters.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from figure import figure, header
from find_errors import CACHE, Found, Shelf, cell, drawn_shelves, judged, out_of_fold
from noisy.features import cached_features
from noisy.photos import read_photo_set

from models.cleaning import DEFAULT
from models.networks.network import best_device

PHOTO_PX = 160
GAIN = 3  # points of F1 over cleanlab's default
CLEANLAB = "cleanlab default"


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10 with human labels; without: drawn clusters")
    parser.add_argument("--weights", type=Path, help="MobileNetV2 (timm's mobilenetv2_100), .safetensors")
    parser.add_argument("--labels", nargs="+", default=["aggre", "worst"], help="columns human_... of the data")
    parser.add_argument(
        "--photos", type=int, default=10_000, help="number of photos from the start of the training split"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="seeds of folds and heads")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for features")
    args = parser.parse_args(words)
    if args.data and not args.weights:
        parser.error("--weights: features need a file of MobileNetV2 weights; give one, or leave --data out")
    torch.set_num_threads(1)
    header("the default rule finds labels that people got wrong better than cleanlab's default")
    if not importlib.util.find_spec("cleanlab"):
        print("cleanlab is not installed here, so its column and the comparison are missing: pip install cleanlab")
    for shelf in read_shelves(args) if args.data else drawn_shelves():
        found: dict[str, list[Found]] = {}
        for seed in args.seeds:
            for rule, one in judged(shelf, out_of_fold(shelf, seed=seed)).items():
                found.setdefault(rule, []).append(one)
        report(shelf, found, target=args.data is not None)


def read_shelves(args: argparse.Namespace) -> Iterator[Shelf]:
    """Yields one shelf for each column of human labels."""
    photos, rows = read_photo_set(args.data), slice(0, args.photos)
    both = (photos.photos, np.ascontiguousarray(photos.photos[:, :, ::-1]))
    plain, mirrored = (cached_features(view, weights=args.weights, photo_px=PHOTO_PX, cache=args.cache, device=best_device())
                       for view in both)  # fmt: skip
    for name in args.labels:
        yield Shelf(name, photos.human_labels(name)[rows], photos.label[rows], (plain[rows], mirrored[rows]))


def report(shelf: Shelf, found: dict[str, list[Found]], *, target: bool) -> None:
    """Prints the F1 of all rules, and the gain of the default rule."""
    print(f"\n{shelf.name}: {len(shelf.given)} photos, {100 * shelf.wrong.mean():.1f} % wrong. F1 / AUROC in %; F1 with floors; "
          "clean photos lost in %, smallest / largest third\n")  # fmt: skip
    for rule, ones in found.items():
        print(f"{rule:20} {cell(ones)}", flush=True)
    if CLEANLAB in found:
        ours, theirs = (float(np.mean([one.f1 for one in found[rule]])) for rule in (DEFAULT, CLEANLAB))
        wanted = theirs + GAIN * target
        figure(f"{shelf.name}, {DEFAULT}, F1 %", round(ours, 2), target=f">= {wanted:.2f}", met=ours >= wanted,
               baseline=round(theirs, 2))  # fmt: skip


if __name__ == "__main__":
    main()
