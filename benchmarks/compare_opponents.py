"""Claim: our rule finds wrong labels better than every published detector that we could build, on the same evidence.

    python benchmarks/compare_opponents.py --data grocery-noisy --human cifar --weights FILE \\
        [--garments fashion_mnist]

Evidence is that of find_errors.py: a head on frozen MobileNetV2 features in five folds of eight epochs; its out-of-fold
probabilities and the features go to our rule, by its public functions and at its defaults, to cleanlab if it is installed, and
to every module of benchmarks/opponents. --data: folder of planted errors; clean: their true labels. --human:
CIFAR-10 with human labels (CIFAR-10N). --garments: Fashion-MNIST with drawn noise. Nothing is tuned here. Without --data: drawn
clusters, in seconds; no targets.

F1 is at each method's own cut, without floors; best F1 is what its ranking allows; precision is among the most suspect 1 and 5 %.
Accuracy after: mean class, on the test photos, of a linear classifier on the same features (opponents/after.py) that learns
from what the method does not call wrong. Beside it: right labels that it calls wrong, in the worst tenth of the classes and
in the median class.
"""

from __future__ import annotations

import argparse
import importlib.util
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from figure import figure, header
from find_errors import CACHE, best_f1, f1, lost, out_of_fold
from noisy import shelves
from noisy.shelves import PHOTO_PX, SETS, Shelf
from numpy.typing import NDArray
from opponents import OPPONENTS, Evidence, Opinion, after

from models.cleaning import DEFAULT, label_quality
from models.evaluation.bootstrap import auroc

HUMAN = ["aggre", "random1", "worst"]
OURS = f"ours, {DEFAULT}"
MARGIN = 2  # points of F1 over the best opponent, mean of all sets
FLAGGED = 1  # % of clean labels that may be called wrong
GIVEN, TRUTH = "nothing called wrong", "exactly the wrong ones"
REFERENCES = (GIVEN, TRUTH)  # of the accuracy after


@dataclass(frozen=True)
class Figures:
    """Figures of one opinion in %; F1, AUROC and precision are NaN where no label is wrong.

    after: mean-class accuracy. lost_worst, lost_median: right labels called wrong, by class.
    """

    flagged: float
    after: float
    lost_worst: float
    lost_median: float
    f1: float
    best_f1: float
    auroc: float
    first: float
    top: float


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    args = parser().parse_args(words)
    if (args.data or args.human or args.garments) and not args.weights:
        raise SystemExit("--weights: features need a file of MobileNetV2 weights; give one, or leave all folders out")
    torch.set_num_threads(1)
    header("our rule finds wrong labels better than every published detector that we could build")
    found: dict[tuple[str, str], list[Figures]] = {}
    names: list[str] = []
    for shelf in asked(args):
        names.append(f"{shelf.kind}, {shelf.name}")
        print(f"{names[-1]}: {len(shelf.given)} photos, {100 * shelf.wrong.mean():.1f} % wrong", flush=True)
        for seed in args.seeds:
            for method, opinion in opinions(shelf, seed=seed).items():
                one = measured(opinion, shelf)
                found.setdefault((method, names[-1]), []).append(one)
                print(f"  seed {seed}, {method}: {cell([one])}; {after_cell([one])}", flush=True)
    report(found, names, has_target=shelf.kind != "drawn")


def parser() -> argparse.ArgumentParser:
    """Parser of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, help="folder of manifests; without: drawn clusters")
    made.add_argument("--truth", type=Path, help="manifest of true labels; default DIR/../grocery/manifest.parquet")
    made.add_argument("--human", type=Path, help="folder of CIFAR-10 with human labels; without: planted errors only")
    made.add_argument("--garments", type=Path, help="folder of Fashion-MNIST")
    made.add_argument("--weights", type=Path, help="MobileNetV2 (timm's mobilenetv2_100), .safetensors")
    made.add_argument("--sets", nargs="*", default=SETS, help="names of manifests; clean: the true labels")
    made.add_argument("--labels", nargs="*", default=HUMAN, help="columns human_... of --human")
    made.add_argument("--photos", type=int, default=10_000, help="photos of --human, from the start, and of --garments")
    made.add_argument("--seeds", nargs="+", type=int, default=[0], help="seeds of folds and heads")
    made.add_argument("--cache", type=Path, default=CACHE, help="folder for features")
    return made


def asked(args: argparse.Namespace) -> Iterator[Shelf]:
    """Yields the sets: planted errors and true labels, human errors, noise on garments; or drawn ones."""
    if args.data:
        yield from shelves.planted(args, args.data, [args.weights], PHOTO_PX, "128 px", {})
    if args.human:
        yield from shelves.human(args, args.labels)
    if args.garments:
        yield from shelves.garments(args)
    if not args.data and not args.human and not args.garments:
        yield from shelves.drawn()


def opinions(shelf: Shelf, *, seed: int) -> Mapping[str, Opinion]:
    """Opinions of our rule, of cleanlab and of all opponents, on one set of probabilities."""
    views = shelf.encoders[0]
    probs = out_of_fold(shelf, views, seed=seed)
    quality = label_quality(shelf.given, probs, views[0] + views[1])
    made = {GIVEN: Opinion(np.zeros_like(shelf.wrong), -quality), TRUTH: Opinion(shelf.wrong, shelf.wrong.astype(float)),
            OURS: Opinion(quality < 0.5, -quality)}  # fmt: skip
    if importlib.util.find_spec("cleanlab"):
        made |= cleanlab_opinions(shelf.given, probs)
    evidence = Evidence(shelf.given, probs, np.stack(views), seed=seed)
    return made | {name: method(evidence) for name, method in OPPONENTS.items()}


def cleanlab_opinions(labels: NDArray[np.int64], probs: NDArray[np.float32]) -> dict[str, Opinion]:
    """Opinions of cleanlab's default, and of its filter by predicted class ranked by the normalised margin."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    made = {}
    with warnings.catch_warnings(action="ignore"):  # warnings about classes with few photos, once per class
        for name, cut, score in (
            ("cleanlab default", "prune_by_noise_rate", "self_confidence"),
            ("cleanlab, predicted class, margin", "predicted_neq_given", "normalized_margin"),
            ("cleanlab, confident learning, entropy", "confident_learning", "confidence_weighted_entropy"),
        ):
            issues = find_label_issues(labels, probs, filter_by=cut, n_jobs=1)
            made[name] = Opinion(issues, -get_label_quality_scores(labels, probs, method=score))
    return made


def measured(opinion: Opinion, shelf: Shelf) -> Figures:
    """Figures of an opinion."""
    assert shelf.test
    wrong, kept = shelf.wrong, ~opinion.wrong
    looks = (shelf.encoders[0][0] + shelf.encoders[0][1])[kept]
    accuracy = 100 * after.accuracy(looks, shelf.given[kept], *shelf.test) if kept.any() else 0.0
    always = (100 * float(opinion.wrong.mean()), accuracy, *lost(shelf, opinion.wrong))
    if not wrong.any():
        return Figures(*always, *[float("nan")] * 5)
    order = np.argsort(-opinion.suspicion, kind="stable")
    first, top = (100 * float(wrong[order[: max(1, round(share * len(order)))]].mean()) for share in (0.01, 0.05))
    area = 100 * auroc(opinion.suspicion[wrong], opinion.suspicion[~wrong])
    return Figures(*always, f1(opinion.wrong, wrong), best_f1(opinion.suspicion, wrong), area, first, top)


def report(found: Mapping[tuple[str, str], list[Figures]], names: Sequence[str], *, has_target: bool) -> None:
    """Prints the table of all methods, and the figures of ours."""
    everyone = list(dict.fromkeys(method for method, _ in found))
    methods = [method for method in everyone if method not in REFERENCES]
    for what, rows, of in (
        (
            "F1 (best F1 of the ranking) / AUROC; precision among the first 1 and 5 %; clean set: labels called wrong",
            methods,
            cell,
        ),
        ("accuracy after; right labels called wrong, worst tenth / median class", everyone, after_cell),
    ):
        print(f"\n{what}; all in %\n\n| method | {' | '.join(names)} |\n|---|" + "---|" * len(names))
        for method in rows:
            print(f"| {method} | {' | '.join(of(found[method, name]) for name in names)} |")
    noisy = [name for name in names if not np.isnan(found[OURS, name][0].f1)]
    means = {method: float(np.mean([mean(found[method, name], "f1") for name in noisy])) for method in methods}
    rival = max((method for method in methods if method != OURS), key=lambda method: means[method])
    figure(f"F1 %, mean of {len(noisy)} sets, over {rival}", round(means[OURS], 2),
           target=f">= {means[rival] + MARGIN:.2f}" if has_target else "none",
           met=not has_target or means[OURS] >= means[rival] + MARGIN, baseline=round(means[rival], 2))  # fmt: skip
    accuracy = {method: float(np.mean([mean(found[method, name], "after") for name in names])) for method in everyone}
    rival = max((method for method in methods if method != OURS), key=lambda method: accuracy[method])
    figure(f"accuracy after %, mean of {len(names)} sets, over {rival}", round(accuracy[OURS], 2), target="none", met=True,
           baseline=round(accuracy[rival], 2))  # fmt: skip
    for name in set(names) - set(noisy):
        value = mean(found[OURS, name], "flagged")
        figure(
            f"{name} labels called wrong, %",
            round(value, 2),
            target=f"<= {FLAGGED}",
            met=value <= FLAGGED,
            baseline=None,
        )


def cell(found: Sequence[Figures]) -> str:
    """Means over the seeds, as a cell of the table."""
    if np.isnan(found[0].f1):
        return f"{mean(found, 'flagged'):.1f}"
    f1, best, area, first, top = (mean(found, key) for key in ("f1", "best_f1", "auroc", "first", "top"))
    return f"{f1:.1f} ({best:.1f}) / {area:.1f}; {first:.0f}, {top:.0f}"


def after_cell(found: Sequence[Figures]) -> str:
    """Means over the seeds of the figures that need no wrong label, as a cell of the table."""
    return "{:.1f}; {:.0f} / {:.0f}".format(*(mean(found, key) for key in ("after", "lost_worst", "lost_median")))


def mean(found: Sequence[Figures], key: str) -> float:
    """Mean of a figure over the seeds."""
    return float(np.mean([getattr(one, key) for one in found]))


if __name__ == "__main__":
    main()
