"""Claim: a product enrolled from a few photos is recognised at once, and costs the other products next to nothing.

    python benchmarks/enrol.py --data grocery --weights mobilenetv2_100_qat.safetensors

Photos go through a frozen MobileNetV2 (128 px, and mirrored; kept in --cache). For each seed a head is trained on a part of the
classes, as in components.py; the others are enrolled from 1, 5 and 10 of their training photos by `models.export.enrol.new_row`,
one at a time and all together, into each of four classifiers: as trained, tau-normalised with tau 0.5 and 1, and the recipe's
blend. Rivals, all together: class means of all products on the same embeddings, and a head trained again with those photos.
Measured: mean-class accuracy on test photos, two views. The rule was chosen on a quarter of the classes, which are never
enrolled here (docs/tasks/enrol.md).

Without --data: drawn clusters, in under a minute.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from figure import figure, header
from ladder.steps import learnt
from numpy.typing import NDArray
from tail.sets import FeatureSet, drawn_set, read_set
from torch import Tensor

from models.errors import ManifestError, WeightsMismatch
from models.export.enrol import enrol, new_row
from models.export.graph import DeployGraph
from models.export.onnx_file import write_onnx
from models.export.patch import name_classes
from models.networks.network import Head, build_network
from models.recipe.config import Export, Gate, Member
from models.training.classifiers import blend, class_means, tau_normalise
from models.training.train import Trained

COUNTS = (1, 5, 10)  # photos of a product
SEEDS = (0, 1, 2)
SPLIT_SEED = 2026
BLEND, SHIPPED = "blend", ("tau 1", "blend")
ONE, ALL = "one at a time", "all together"
MEANS, ANEW = "class means", "trained again"
ROUNDING = 1e-9
SIDE = 160  # pixels of the photo in the timed graph
Classifier = tuple[Tensor, Tensor]  # rows (C, d) and bias (C,)


@dataclass(frozen=True)
class Found:
    """Mean-class accuracy on test photos: of the new products, of the others after and before, of all.

    free, passed: shares of the new products that cost the others nothing, and no more than the gate allows.
    """

    classifier: str
    way: str
    photos: int
    new: float
    old: float
    before: float
    all: float
    free: float
    passed: float


@dataclass(frozen=True)
class Split:
    """Photos by class: the first `num_old` classes are learnt, the others enrolled."""

    photos: FeatureSet
    num_old: int
    seed: int

    def train(self, count: int) -> NDArray[np.int64]:
        """Training photos of all old classes, and `count` of each new one."""
        rows = self.photos.rows("train")
        new = [self.few(each, count) for each in range(self.num_old, self.photos.num_classes)]
        return np.concatenate([rows[self.photos.target[rows] < self.num_old], *new])

    def few(self, product: int, count: int) -> NDArray[np.int64]:
        """Training photos of the new classes; the same first ones for every count."""
        rows = self.photos.rows("train")
        own = rows[self.photos.target[rows] == product]
        return np.random.default_rng([self.seed, product]).permutation(own)[:count]


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line; exit code 0, or 2 if data or weights are refused."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, help="folder with manifest.parquet and photos; without: drawn clusters")
    made.add_argument(
        "--weights", type=Path, default=Path("mobilenetv2_100.safetensors"), help="weights of mobilenetv2_100"
    )
    made.add_argument("--cache", type=Path, default=Path(__file__).resolve().parents[1] / "build" / "features")
    args = made.parse_args(words)
    torch.set_num_threads(1)
    header("a product enrolled from a few photos is recognised at once, and costs the others next to nothing")
    try:
        photos = drawn_set(imbalance=2, noise=0.0) if args.data is None else read_set(
            args.data, "manifest", truth=None, weights=args.weights, cache=args.cache)  # fmt: skip
    except (ManifestError, WeightsMismatch) as error:
        print(error, file=sys.stderr)
        return 2
    found = [each for seed in SEEDS for each in measured(split_of(photos, seed=seed))]
    report(photos, found)
    claim(found, seconds=seconds_of_one(photos.num_classes))
    return 0


def split_of(photos: FeatureSet, *, seed: int) -> Split:
    """Split whose new classes differ for each seed, and never include those that the rule was chosen on."""
    drawn = np.random.default_rng(SPLIT_SEED).permutation(photos.num_classes)
    first = photos.num_classes // 4 + 1
    size = (photos.num_classes - first) // len(SEEDS)
    new = np.sort(drawn[first + size * seed :][:size])
    order = np.concatenate([np.setdiff1d(drawn, new), new])
    return Split(dataclasses.replace(photos, target=np.argsort(order)[photos.target]), len(order) - size, seed)


@torch.inference_mode()
def measured(split: Split) -> Iterator[Found]:
    """Results of one split of the classes."""
    head = trained(split, count=0)
    embedding = embeddings(head, split)
    bases = classifiers(head, embedding, split, count=0)
    means = class_means(*learnable(embedding, split, count=0), num_classes=split.num_old)
    before = {name: accuracy(base, embedding, split)[1] for name, base in {**bases, MEANS: means}.items()}
    for count in COUNTS:
        rows = {name: [enrolled_row(base, embedding[split.few(each, count)])
                       for each in range(split.num_old, split.photos.num_classes)] for name, base in bases.items()}  # fmt: skip
        for name, base in bases.items():
            singly = [
                accuracy(appended(base, [row]), embedding, split, product=number)
                for number, row in enumerate(rows[name])
            ]
            yield outcome(name, ONE, count, singly, before[name], split)
            yield outcome(
                name, ALL, count, [accuracy(appended(base, rows[name]), embedding, split)], before[name], split
            )
        means = class_means(*learnable(embedding, split, count=count), num_classes=split.photos.num_classes)
        yield outcome(MEANS, ALL, count, [accuracy(means, embedding, split)], before[MEANS], split)
        anew = trained(split, count=count)
        fresh = embeddings(anew, split)
        for name, rival in classifiers(anew, fresh, split, count=count).items():
            yield outcome(f"{name}, {ANEW}", ALL, count, [accuracy(rival, fresh, split)], before[name], split)


def outcome(
    classifier: str, way: str, photos: int, measured: Sequence[tuple[float, float]], before: float, split: Split
) -> Found:  # fmt: skip
    """Summary of the accuracies of (new, old) products: one pair, or one for each product."""
    new, old = (statistics.mean(column) for column in zip(*measured, strict=True))
    share = 1 - split.num_old / split.photos.num_classes
    free, passed = (
        statistics.mean(after >= before - allowed for _, after in measured) for allowed in (ROUNDING, Gate().enrol)
    )
    return Found(classifier, way, photos, new, old, before, share * new + (1 - share) * old, free, passed)


def trained(split: Split, *, count: int) -> Head:
    """Head for the old classes, or for all classes with `count` photos of each new one."""
    num_classes = split.photos.num_classes if count else split.num_old
    with torch.inference_mode(False):
        return learnt(
            dataclasses.replace(split.photos, num_classes=num_classes), split.train(count), seed=split.seed, train={}
        )


def embeddings(head: Head, split: Split) -> Tensor:
    """Embeddings (N, V, d) of all photos in all views."""
    return torch.stack([head.embedding(view) for view in split.photos.views], 1)


def learnable(embedding: Tensor, split: Split, *, count: int) -> tuple[Tensor, NDArray[np.int64]]:
    """Embeddings of the training photos as they are, and their classes."""
    rows = split.train(count)
    return embedding[torch.from_numpy(rows), 0], split.photos.target[rows]


def classifiers(head: Head, embedding: Tensor, split: Split, *, count: int) -> dict[str, Classifier]:
    """Classifiers as trained, with tau 0.5 and 1, and blended with class means and prior as the recipe does it."""
    weight = head.classifier.weight.detach()
    known, target = learnable(embedding, split, count=count)
    tau = {f"tau {tau:g}": (tau_normalise(weight, tau), torch.zeros(len(weight))) for tau in (0.0, 0.5, 1.0)}
    means = class_means(known, target, num_classes=len(weight))
    return tau | {BLEND: blend(weight, means, counts=np.bincount(target, minlength=len(weight)))}


def enrolled_row(base: Classifier, embedding: Tensor) -> Classifier:
    """Row that `cleanshelf enrol` appends for (G, V, d) embeddings of the photos."""
    row, bias = new_row(base[0].numpy(), base[1].numpy(), embedding.numpy())
    return torch.from_numpy(row).float()[None], torch.tensor([bias])


def appended(base: Classifier, rows: Sequence[Classifier]) -> Classifier:
    """Classifier with more rows."""
    return torch.cat([base[0], *(row for row, _ in rows)]), torch.cat([base[1], *(bias for _, bias in rows)])


def accuracy(
    classifier: Classifier, embedding: Tensor, split: Split, *, product: int | None = None
) -> tuple[float, float]:
    """Mean-class accuracy on test photos of the new and of the old classes; `product`: the only new class appended."""
    rows, bias = classifier
    photos = split.photos.rows("test")
    target = split.photos.target[photos]
    if product is not None:
        photos = photos[(target < split.num_old) | (target == split.num_old + product)]
        target = split.photos.target[photos].clip(max=split.num_old)
    said = torch.einsum("nvd,cd->nvc", embedding[torch.from_numpy(photos)], rows).add(bias).softmax(2).mean(1).argmax(1)
    hit = said.numpy() == target
    share = [hit[target == each].mean() for each in np.unique(target)]
    is_old = np.unique(target) < split.num_old
    return float(np.mean(np.array(share)[~is_old])), float(np.mean(np.array(share)[is_old]))


def report(photos: FeatureSet, found: Sequence[Found]) -> None:
    """Prints the table in %, mean over the seeds."""
    num_old = split_of(photos, seed=0).num_old
    print(f"\n{photos.name}: {num_old} products learnt, {photos.num_classes - num_old} new; {len(SEEDS)} seeds\n")
    print(
        "| classifier | enrolled | photos | new products | the others | before | points lost | cost nothing | pass gate | all |"
    )
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for key in dict.fromkeys((each.classifier, each.way, each.photos) for each in found):
        row = mean(found, *key)
        shares, whole = (f"{row.free:.0f} | {row.passed:.0f}", "") if row.way == ONE else (" | ", f"{row.all:.1f}")
        cells = f"{row.new:.1f} | {row.old:.1f} | {row.before:.1f} | {row.before - row.old:.2f} | {shares} | {whole}"
        print(f"| {' | '.join(map(str, key))} | {cells} |", flush=True)
    print()


def mean(found: Sequence[Found], classifier: str, way: str, photos: int) -> Found:
    """Mean over the seeds, in %."""
    rows = [each for each in found if (each.classifier, each.way, each.photos) == (classifier, way, photos)]
    parts = ("new", "old", "before", "all", "free", "passed")
    return Found(
        classifier, way, photos, *(100 * statistics.mean(getattr(each, part) for each in rows) for part in parts)
    )


def claim(found: Sequence[Found], *, seconds: float) -> None:
    """Figures of the classifiers that ship: the cost of one product to the others, and many at once beside a training."""
    for name in SHIPPED:
        for count in COUNTS:
            one, whole, anew = (
                mean(found, *key, count) for key in ((name, ONE), (name, ALL), (f"{name}, {ANEW}", ALL))
            )
            lost, what = one.before - one.old, f"{name}, one product from {count} photos"
            figure(
                f"{what}: points lost by the others", round(lost, 3), target="<= 0.5", met=lost <= 0.5, baseline=None
            )
            figure(f"{what}: its accuracy, %; baseline: the others'", round(one.new, 2), target=f">= {one.before / 2:.1f}",
                   met=one.new >= one.before / 2, baseline=round(one.before, 2))  # fmt: skip
            figure(f"{name}, all new products from {count} photos: accuracy of all, %; baseline: trained again",
                   round(whole.all, 2), target=f">= {anew.all - 2:.1f}", met=whole.all >= anew.all - 2,
                   baseline=round(anew.all, 2))  # fmt: skip
    figure(
        "patching the file with a product of 5 photos, s",
        round(seconds, 2),
        target="<= 10",
        met=seconds <= 10,
        baseline=None,
    )


def seconds_of_one(num_classes: int) -> float:
    """Seconds of `models.export.enrol.enrol` on a MobileNetV2 in ten crops, photos already decoded."""
    labels = [f"product {number}" for number in range(num_classes)]
    member = Member(backbone="mobilenetv2_100", size=128)
    network = build_network(member, num_classes=num_classes).eval()
    graph = DeployGraph([Trained(network, member, labels, 0.0)], settings=Export(input_size=SIDE))
    photos = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3)).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(graph, path, input_size=SIDE, metadata=name_classes(labels))
        start = time.perf_counter()
        enrol(path, photos, label="new", sha256=[], out=path.with_name("new.onnx"))
        return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
