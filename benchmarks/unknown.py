"""Claim: photos of no product are detected better than by the top probability, without photos of unknown products.

    python benchmarks/unknown.py --data grocery-noisy --weights mobilenetv2_100_qat.safetensors

Heads are trained on features of a frozen MobileNetV2 (128 px, and mirrored), as in components.py, without HELD_OUT of the classes.
Known photos are the test photos of the other classes. Unknown photos are the test photos of the classes held out, which look
much like the others, and the pictures that --products does not list (of outofset10: animals). Temperatures, scores and
thresholds are what models.export.calibrate chooses on the validation photos, and on classes that it strikes out of training
itself; it sees no unknown photo and no test photo. `means` is the cosine to the nearest class mean. Without --data: drawn
clusters, in seconds; no targets.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from figure import figure, header
from ladder.steps import Lesson, balance, learn
from numpy.typing import NDArray
from tail.sets import SIDE, FeatureSet, drawn_set, features_of, frozen, read_set
from torch import Tensor
from torch.nn import functional

import pixels
from models.errors import ManifestError, WeightsMismatch
from models.evaluation.bootstrap import auroc
from models.export.calibrate import Chosen, accept, in_tiles, without
from models.export.discriminant import Rows, fit
from models.export.ood import DISCRIMINANT, PROBABILITY, SCORES, Calibration, MemberOutput, discriminants, score_of
from models.export.struck import Shown, separations
from models.export.temperature import TEMPERATURES, fit_temperatures, label_probabilities, nll
from models.networks.network import Head
from models.recipe.config import Balance

HELD_OUT = 0.2  # share of the classes
SHARE = 0.95  # share of validation photos that are accepted
FALSE = 0.05  # share of unknown photos accepted wrongly, at which accept rates are reported
AS_IS, MEANS = "probability, temperature 1", "means"
HEADS = {"cross-entropy": Balance(method="none"), "blended with class means": Balance(method="blend")}
STRANGERS = ("held-out classes", "other pictures")


@dataclass(frozen=True)
class Stall:
    """Products, pictures of anything else, and the validation photos in tiles: (2, n, d) features of each."""

    photos: FeatureSet
    other: Tensor
    tiles: Tensor


@dataclass(frozen=True)
class Asked:
    """Answers of one head to known photos and to both kinds of unknown photos, in that order.

    scores: by name, three arrays. pseudo: AUROC of each on validation photos, from struck classes and in tiles.
    accepted: shares of the three. chosen: the score of `known`. nll: on the labels of test photos, before and after.
    """

    scores: dict[str, list[NDArray[np.float64]]]
    pseudo: dict[str, tuple[float, float]]
    accepted: list[float]
    chosen: str
    nll: tuple[float, float]
    temperature: float


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line; exit code 0, or 2 if data or weights are refused."""
    args = parser().parse_args(words)
    torch.set_num_threads(1)
    header("photos of no product are detected better than by the top probability, without photos of unknown products")
    try:
        stall = drawn_stall() if args.data is None else read_stall(args)
    except (ManifestError, WeightsMismatch) as error:
        print(error, file=sys.stderr)
        return 2
    tables: list[list[tuple[float, float, float]]] = []
    found: dict[str, list[Asked]] = {name: [] for name in HEADS}
    for seed in args.seeds:
        shelf, rows = without_classes(stall, seed=seed)
        heads = {name: head(shelf.photos, settings, seed=seed) for name, settings in HEADS.items()}
        for name, each in heads.items():
            found[name].append(ask(each, shelf, stall.photos.views[:, rows]))
        tables.append(mixed(list(heads.values()), shelf.photos))
    for name, asked in found.items():
        report(name, asked)
        claim(name, asked, has_target=args.data is not None)
    report_mixed(tables)
    return 0


def parser() -> argparse.ArgumentParser:
    """Parser of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, help="folder with manifests and photos; without: drawn clusters")
    made.add_argument("--manifest", default="outofset10", help="products and other pictures")
    made.add_argument("--products", default="sym40", help="a manifest of the products alone")
    made.add_argument(
        "--weights", type=Path, default=Path("mobilenetv2_100.safetensors"), help="weights of mobilenetv2_100"
    )
    made.add_argument("--cache", type=Path, default=Path(__file__).resolve().parents[1] / "build" / "features")
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of classes held out, weights and order")
    return made


def read_stall(args: argparse.Namespace) -> Stall:
    """Stall with the photos of --data, seen through the frozen network.

    Raises:
        ManifestError: one of the two manifests does not exist.
    """
    if not (args.data / f"{args.products}.parquet").is_file():
        raise ManifestError(
            f"--products: {args.data / args.products}.parquet does not exist; give a manifest of products"
        )
    photos = read_set(args.data, args.manifest, truth=None, weights=args.weights, cache=args.cache)
    paths, products = (np.array(pq.read_table(args.data / f"{name}.parquet", columns=["path"])["path"].to_pylist())
                       for name in (args.manifest, args.products))  # fmt: skip
    product = np.isin(paths, products)
    squares = [pixels.to_square(pixels.decode((args.data / path).read_bytes()), SIDE)
               for path in paths[product & (photos.split == "val")]]  # fmt: skip
    tiles = features_of(frozen(args.weights), in_tiles(torch.from_numpy(np.stack(squares))))
    return Stall(rows_of(photos, product), photos.views[:, torch.from_numpy(~product)], tiles)


def rows_of(photos: FeatureSet, mask: NDArray[np.bool_]) -> FeatureSet:
    """Samples where a mask is true, with the same classes."""
    views = photos.views[:, torch.from_numpy(mask)]
    return dataclasses.replace(photos, views=views, target=photos.target[mask], split=photos.split[mask])


def drawn_stall() -> Stall:
    """Stall of drawn clusters; other pictures and tiles lie about the middle of all, as far out as the clusters do."""
    photos, draw = drawn_set(imbalance=2, noise=0.0), torch.Generator().manual_seed(0)
    shape = (2, int((photos.split == "val").sum()), photos.views.shape[2])
    other, tiles = (torch.randn(shape, generator=draw) * photos.views.std() for _ in range(2))
    return Stall(photos, other, tiles)


def without_classes(stall: Stall, *, seed: int) -> tuple[Stall, NDArray[np.int64]]:
    """Stall with a part of the classes, and positions of the test photos of the other classes in its photos."""
    photos, draw = stall.photos, np.random.default_rng(seed)
    left = np.sort(draw.permutation(photos.num_classes)[int(HELD_OUT * photos.num_classes) :])
    known = np.isin(photos.target, left)
    part = rows_of(photos, known)
    part = dataclasses.replace(part, target=np.searchsorted(left, part.target), num_classes=len(left))
    tiles = stall.tiles[:, torch.from_numpy(known[photos.split == "val"])]
    return Stall(part, stall.other, tiles), np.flatnonzero(~known & (photos.split == "test"))


def head(photos: FeatureSet, settings: Balance, *, seed: int) -> Head:
    """Head trained on the photos, with a classifier made as the settings say."""
    lesson = Lesson(photos=photos, seed=seed)
    made = learn(lesson)
    if settings.method != "none":
        balance(made, lesson, settings)
    return made


@torch.inference_mode()
def output(head: Head, views: Tensor, *, temperature: float = 1.0) -> list[MemberOutput]:
    """Output of an ensemble of one head."""
    outputs = [head(view) for view in views]
    logits, embedding = (torch.stack(part) for part in zip(*outputs, strict=True))
    return [MemberOutput(logits / temperature, embedding)]


@torch.inference_mode()
def scores(outputs: Sequence[MemberOutput], rows: Rows, *, label: Tensor | None = None) -> NDArray[np.float64]:
    """(N, S) all SCORES; with labels (N,), discriminants without those classes."""
    mean, weights = torch.stack([each.logits.softmax(2).mean(0) for each in outputs]).mean(0), torch.ones(1, 1, 1)
    table = discriminants([rows], outputs, weights)
    table = table if label is None else table.scatter(1, label[:, None], -torch.inf)
    columns = [score_of(name, outputs, mean, weights) for name in SCORES if name != DISCRIMINANT]
    return torch.cat([*columns, table.amax(1, keepdim=True)], 1).double().numpy()


@torch.inference_mode()
def fitted(head: Head, photos: FeatureSet) -> Rows:
    """Discriminants of the training photos as they are."""
    rows = photos.rows("train")
    made = fit(head.embedding(photos.views[0, rows]).numpy(), photos.target[rows], num_classes=photos.num_classes)
    assert made is not None
    return Rows(made)


def ask(head: Head, stall: Stall, held_out: Tensor) -> Asked:
    """Answers of a head calibrated on validation photos to test photos, held-out classes and other pictures."""
    photos = stall.photos
    val, test = (photos.views[:, photos.rows(split)] for split in ("val", "test"))
    labels, truth = (torch.from_numpy(photos.target[photos.rows(split)]) for split in ("val", "test"))
    one = np.ones(1)
    (temperature,), sure = fit_temperatures(
        label_probabilities(output(head, val), labels).numpy(), one, num_classes=photos.num_classes
    )
    outputs, rows = output(head, val, temperature=temperature), fitted(head, photos)
    known, masked, tiles = (
        scores(outputs, rows),
        scores(without(outputs, labels), rows, label=labels),
        scores(output(head, stall.tiles, temperature=temperature), rows),
    )
    shown = [
        Shown([photos.views[0, photos.rows(split)]], photos.target[photos.rows(split)]) for split in ("train", "val")
    ]
    struck = separations(*shown, torch.ones(1, 1, 1), [temperature])
    chosen = accept(
        Chosen(Calibration((temperature,)), len(labels), sure), known, masked, tiles, share=SHARE, struck=struck
    )
    groups = (test, held_out, stall.other)
    said = [scores(output(head, views, temperature=temperature), rows) for views in groups]
    plain = [scores(output(head, views), rows)[:, SCORES.index(PROBABILITY)] for views in groups]
    by_name = {AS_IS: plain} | {name: [each[:, i] for each in said] for i, name in enumerate(SCORES)}
    by_name[MEANS] = to_means(head, photos, groups)
    column = by_name[chosen.calibration.score]
    table = label_probabilities(output(head, test), truth).numpy()
    at = [int(np.argmin(abs(TEMPERATURES - each))) for each in (1.0, temperature)]
    before, after = (nll(table, one, [each]) for each in at)
    return Asked(by_name, {name: tuple(told) for name, told in chosen.separation.items()},
                 [float((each >= chosen.calibration.threshold).mean()) for each in column], chosen.calibration.score,
                 (before, after), temperature)  # fmt: skip


@torch.inference_mode()
def to_means(head: Head, photos: FeatureSet, groups: Sequence[Tensor]) -> list[NDArray[np.float64]]:
    """Cosines to the nearest class mean of the training photos, after subtracting the mean of all."""
    rows = photos.rows("train")
    embedding, target = head.embedding(photos.views[0, rows]), torch.from_numpy(photos.target[rows])
    centre = embedding.mean(0)
    total = torch.zeros(photos.num_classes, embedding.shape[1]).index_add_(0, target, embedding - centre)
    means = functional.normalize(total)
    outputs = [torch.stack([head.embedding(view) for view in views]).mean(0) - centre for views in groups]
    return [(functional.normalize(each) @ means.T).amax(1).double().numpy() for each in outputs]


def mixed(heads: Sequence[Head], photos: FeatureSet) -> list[tuple[float, float, float]]:
    """NLL and top-1 on test photos of the ensemble of both heads, at temperature 1, at one for both, at one each; ratio."""
    weights = np.full(len(heads), 1 / len(heads))
    tables, outputs = {}, {}
    for split in ("val", "test"):
        rows = photos.rows(split)
        outputs[split] = [output(head, photos.views[:, rows])[0] for head in heads]
        tables[split] = label_probabilities(outputs[split], torch.from_numpy(photos.target[rows])).numpy()
    own, _ = fit_temperatures(tables["val"], weights, num_classes=photos.num_classes)
    both = min(range(len(TEMPERATURES)), key=lambda each: nll(tables["val"], weights, [each] * len(heads)))
    ways = [(1.0,) * len(heads), (float(TEMPERATURES[both]),) * len(heads), own]
    truth, found = torch.from_numpy(photos.target[photos.rows("test")]), []
    for way in ways:
        mean = torch.stack(
            [(each.logits / t).softmax(2).mean(0) for each, t in zip(outputs["test"], way, strict=True)]
        ).mean(0)
        of_mean = -mean.gather(1, truth[:, None]).clamp_min(1e-12).log().mean()
        found.append((float(of_mean), float((mean.argmax(1) == truth).float().mean()), max(way) / min(way)))
    return found


def report(name: str, asked: Sequence[Asked]) -> None:
    """Prints the table in %, mean and standard deviation over the seeds."""
    temperature = ", ".join(f"{each.temperature:.2f}" for each in asked)
    before, after = (statistics.mean(each.nll[i] for each in asked) for i in (0, 1))
    alone = [max(each.pseudo.items(), key=lambda item: item[1][0])[0] for each in asked]
    print(f"\n{name}: temperatures {temperature}; NLL at test labels {before:.3f} -> {after:.3f}; "
          f"known by {', '.join(each.chosen for each in asked)}; without tiles by {', '.join(alone)}\n")  # fmt: skip
    columns = [f"{what}, {whom}" for whom in STRANGERS for what in ("AUROC", f"accepted at {FALSE:.0%} false")]
    print(
        f"| score | {' | '.join(columns)} | chosen by: struck classes, in tiles |\n|---|" + "--:|" * (len(columns) + 1)
    )
    for score in asked[0].scores:
        cells = [cell(values) for values in zip(*(_figures(each, score) for each in asked), strict=True)]
        separations = [each.pseudo[score] for each in asked if score in each.pseudo]
        stood = ", ".join(f"{100 * statistics.mean(kind):.1f}" for kind in zip(*separations, strict=True))
        print(f"| {score} | {' | '.join(cells)} | {stood} |", flush=True)
    shares = [cell(values) for values in zip(*(each.accepted for each in asked), strict=True)]
    print(
        f"\naccepted by the line, %: {shares[0]} of test photos, {shares[1]} of held-out classes, {shares[2]} of others\n"
    )


def _figures(asked: Asked, score: str) -> Iterator[float]:
    known, *strangers = asked.scores[score]
    for each in strangers:
        yield auroc(known, each)
        yield float((known > np.quantile(each, 1 - FALSE)).mean())


def cell(values: Sequence[float]) -> str:
    """Mean and standard deviation in %."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * spread:.1f}"


def report_mixed(tables: Sequence[Sequence[tuple[float, float, float]]]) -> None:
    """Prints the table of both heads as one ensemble."""
    print("\n| both heads as one ensemble | NLL at test labels | top-1, % |\n|---|--:|--:|")
    for number, name in enumerate(("temperature 1", "one for both", "one each")):
        found, top1 = ([table[number][i] for table in tables] for i in (0, 1))
        print(f"| {name} | {statistics.mean(found):.3f} | {cell(top1)} |", flush=True)


def claim(name: str, asked: Sequence[Asked], *, has_target: bool) -> None:
    """Figures of `known` beside the top probability as it is."""
    for whom, column in ((whom, 2 * i) for i, whom in enumerate(STRANGERS)):
        for what, offset in (("AUROC", 0), (f"known accepted at {FALSE:.0%} false accepts", 1)):
            own, base = (100 * statistics.mean([*_figures(each, score or each.chosen)][column + offset] for each in asked)
                         for score in ("", AS_IS))  # fmt: skip
            figure(f"{whom}, {name}, {what}, %, mean of {len(asked)} seeds", round(own, 2),
                   target=f"> {base:.2f}" if has_target else "none", met=own > base or not has_target,
                   baseline=round(base, 2))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
