"""Claim: one rule with one setting finds planted wrong labels better than every known rule, for every kind of error.

    python benchmarks/find_errors.py --data DIR --weights FILE [--seeds 0 1 2 3 4]

DIR holds NAME.parquet (columns path, label, split; paths relative to DIR) for each kind of error. --truth holds the same
photos with their true labels, matched by file name. A head is trained on frozen MobileNetV2 features (--weights) in five folds
of eight epochs, and all rules score the same out-of-fold probabilities and features. Nothing is tuned here: rules run with
their defaults.

Without --data it draws clusters with errors of the same kinds, in ten seconds; their figures have no targets.
"""

from __future__ import annotations

import argparse
import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from figure import figure, header
from noisy.features import cached_features
from numpy.typing import NDArray
from torch.nn import functional

from models.cleaning import DEFAULT, RULES, find_label_errors, label_quality
from models.data.samplers import folds
from models.evaluation.bootstrap import auroc
from models.networks.network import Head, best_device
from pixels import decode, to_square

CACHE = Path(__file__).resolve().parents[1] / "build"
PHOTO_PX = 128
NUM_FOLDS, EPOCHS, BATCH, LR, WEIGHT_DECAY = 5, 8, 256, 1e-3, 1e-2
TARGETS = {"sym40": 91, "fine30": 81, "instance35": 88, "longtail50-fine30": 71}  # F1 in %
KNOWN = {
    "sym40": 91,
    "fine30": 80,
    "instance35": 88,
    "longtail50-fine30": 70,
}  # probabilities x 10-NN, as measured before


@dataclass(frozen=True)
class Shelf:
    """Photos with given and true labels (N,), and the features (N, d) of two views, the second mirrored."""

    name: str
    given: NDArray[np.int64]
    true: NDArray[np.int64]
    views: tuple[NDArray[np.float32], NDArray[np.float32]]

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """(N,) true where the given label is wrong."""
        return self.given != self.true

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return int(max(self.given.max(), self.true.max())) + 1


@dataclass(frozen=True)
class Found:
    """Figures of one rule on one set of probabilities, in %.

    lost: clean photos called wrong, of the smallest and the largest third.
    """

    f1: float
    auroc: float
    f1_floor: float
    lost_small: float
    lost_large: float
    emptied: int


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of manifests; without: drawn clusters")
    parser.add_argument("--truth", type=Path, help="manifest of true labels; default DIR/../grocery/manifest.parquet")
    parser.add_argument("--weights", type=Path, help="MobileNetV2 (timm's mobilenetv2_100), .safetensors")
    parser.add_argument("--sets", nargs="+", default=list(TARGETS), help="names of manifests")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="seeds of folds and heads")
    args = parser.parse_args(words)
    if args.data and not args.weights:
        parser.error("--weights: features need a file of MobileNetV2 weights; give one, or leave --data out")
    torch.set_num_threads(1)
    header("one rule with one setting finds planted wrong labels better than every known rule")
    shelves = read_shelves(args) if args.data else drawn_shelves()
    results = {}
    for shelf in shelves:
        print(f"{shelf.name}: {len(shelf.given)} photos, {100 * shelf.wrong.mean():.1f} % wrong", flush=True)
        for seed in args.seeds:
            for rule, found in judged(shelf, out_of_fold(shelf, seed=seed)).items():
                results.setdefault((rule, shelf.name), []).append(found)
    report(results, seeds=len(args.seeds), targets=TARGETS if args.data else {})


def read_shelves(args: argparse.Namespace) -> Iterator[Shelf]:
    """Yields every set of --data; features are computed once and kept in build/."""
    truth = pq.read_table(args.truth or args.data.parent / "grocery" / "manifest.parquet").to_pydict()
    label_of = {Path(path).name: label for path, label in zip(truth["path"], truth["label"], strict=True)}
    classes = {label: number for number, label in enumerate(sorted(set(label_of.values())))}
    names = sorted(label_of)
    photos = np.stack([to_square(decode((args.data / "images" / name).read_bytes()), PHOTO_PX) for name in names])
    views = [cached_features(view, weights=args.weights, photo_px=PHOTO_PX, cache=CACHE, device=best_device())
             for view in (photos, np.ascontiguousarray(photos[:, :, ::-1]))]  # fmt: skip
    for name in args.sets:
        table = pq.read_table(args.data / f"{name}.parquet", filters=[("split", "=", "train")]).to_pydict()
        files = [Path(path).name for path in table["path"]]
        rows = np.searchsorted(names, files)
        given = np.array([classes[label] for label in table["label"]])
        true = np.array([classes[label_of[file]] for file in files])
        yield Shelf(name, given, true, (views[0][rows], views[1][rows]))


def drawn_shelves() -> Iterator[Shelf]:
    """Clusters in pairs of siblings: errors at random, inside the pairs, where the truth is unsure, and on a long tail."""
    draw = np.random.default_rng(0)
    centres = np.repeat(draw.standard_normal((10, 64)), 2, axis=0) + 0.5 * draw.standard_normal((20, 64))
    for name, size in (("random", 60), ("siblings", 60), ("unsure", 60), ("tail", 0)):
        counts = np.full(20, size) if size else np.rint(80 * 40.0 ** (-np.arange(20) / 19)).astype(int)
        true = np.repeat(np.arange(20), counts)
        features = (centres[true] + 0.9 * draw.standard_normal((len(true), 64))).astype(np.float32)
        given = true.copy()
        moved = draw.random(len(true)) < (0.4 if name == "random" else 0.3)
        if name == "unsure":
            cosine = features @ centres.T
            moved = np.argsort(np.argsort(cosine[np.arange(len(true)), true] - cosine[np.arange(len(true)), true ^ 1]))
            moved = moved < 0.3 * len(true)
        given[moved] = (true[moved] + draw.integers(1, 20, moved.sum())) % 20 if name == "random" else true[moved] ^ 1
        yield Shelf(name, given, true, (features, features))


def out_of_fold(shelf: Shelf, *, seed: int) -> NDArray[np.float32]:
    """(N, C) probabilities by lightly trained heads that did not see the photo, mean of both views."""
    ids = np.random.default_rng(seed).permutation(len(shelf.given)).astype(str).astype(object)
    fold = folds(shelf.given, ids, num_folds=NUM_FOLDS)
    probs = np.zeros((len(shelf.given), shelf.num_classes), np.float32)
    for held_out in range(NUM_FOLDS):
        head = trained(shelf, np.flatnonzero(fold != held_out), seed=NUM_FOLDS * seed + held_out)
        rows = fold == held_out
        with torch.inference_mode():
            views = [head(torch.from_numpy(view[rows])).logits.softmax(1) for view in shelf.views]
        probs[rows] = torch.stack(views).mean(0).numpy()
    return probs


def trained(shelf: Shelf, rows: NDArray[np.int64], *, seed: int) -> Head:
    """A head after EPOCHS epochs of cross-entropy on these photos, each seen as it is or mirrored."""
    torch.manual_seed(seed)
    views = torch.stack([torch.from_numpy(view[rows]) for view in shelf.views])
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


def judged(shelf: Shelf, probs: NDArray[np.float32]) -> dict[str, Found]:
    """Figures of every rule on the same probabilities."""
    features = shelf.views[0] + shelf.views[1]
    made = {}
    for rule in RULES.components:
        quality = label_quality(shelf.given, probs, features, rule=rule)
        dropped = find_label_errors(shelf.given, probs, features, rule=rule)
        made[rule] = measured(shelf, quality < 0.5, -quality, dropped)
    if importlib.util.find_spec("cleanlab"):
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores

        with warnings.catch_warnings(action="ignore"):  # warnings about classes with few photos, once per class
            issues = find_label_issues(shelf.given, probs, n_jobs=1)
        made["cleanlab default"] = measured(shelf, issues, -get_label_quality_scores(shelf.given, probs), issues)
    return made


def measured(
    shelf: Shelf, mask: NDArray[np.bool_], suspicion: NDArray[np.floating], dropped: NDArray[np.bool_]
) -> Found:
    """mask: called wrong; dropped: the same with the floors."""
    sizes = np.bincount(shelf.given, minlength=shelf.num_classes)
    order = np.argsort(sizes, kind="stable")[(sizes == 0).sum() :]
    thirds = np.array_split(order, 3)
    clean = ~shelf.wrong
    lost = [100 * float(dropped[clean & np.isin(shelf.given, third)].mean()) for third in (thirds[0], thirds[2])]
    left = np.bincount(shelf.given[~dropped], minlength=shelf.num_classes)
    area = 100 * auroc(suspicion[shelf.wrong], suspicion[~shelf.wrong])
    return Found(f1(mask, shelf.wrong), area, f1(dropped, shelf.wrong), *lost,
                 int(((left == 0) & (sizes > 0)).sum()))  # fmt: skip


def f1(called: NDArray[np.bool_], wrong: NDArray[np.bool_]) -> float:
    """F1 in %."""
    return 200 * float((called & wrong).sum()) / max(1, int(called.sum() + wrong.sum()))


def report(results: dict[tuple[str, str], list[Found]], *, seeds: int, targets: dict[str, int]) -> None:
    """Prints the table of all rules, then the figures of the default."""
    sets = list(dict.fromkeys(name for _, name in results))
    print(f"\nF1 / AUROC in %; F1 with floors; clean photos lost in %, smallest / largest third; {seeds} seeds")
    print("\n| rule | " + " | ".join(sets) + " |\n|---|" + "---|" * len(sets))
    for rule in dict.fromkeys(rule for rule, _ in results):
        print(f"| `{rule}` | " + " | ".join(cell(results[rule, name]) for name in sets) + " |")
    for name in sets:
        found = results[DEFAULT, name]
        value, target = float(np.mean([one.f1 for one in found])), targets.get(name)
        figure(f"{name}, {DEFAULT}, F1 %, mean of {seeds}", round(value, 2), target=f">= {target}" if target else "none",
               met=target is None or value >= target, baseline=KNOWN[name] if target else None)  # fmt: skip
        emptied = sum(one.emptied for one in found)
        figure(f"{name}, {DEFAULT}, classes emptied", emptied, target="0", met=emptied == 0, baseline=None)


def cell(found: list[Found]) -> str:
    """Means over the seeds, as a cell of the table."""
    f1, area, floor, small, large = (
        np.mean([getattr(one, key) for one in found]) for key in ("f1", "auroc", "f1_floor", "lost_small", "lost_large")
    )
    return f"{f1:.1f} / {area:.1f}; {floor:.1f}; {small:.1f} / {large:.1f}"


if __name__ == "__main__":
    main()
