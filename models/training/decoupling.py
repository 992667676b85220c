"""Re-balance the classifier of a trained network.

    python -m models.training.decoupling --data DIR --recipe FILE --network FILE --out DIR


After Kang et al., ICLR 2020 (arXiv 1910.09217): the representation learns from the data as it lies, and the classifier alone is
put right afterwards. `models.training.classifiers` has the ways; this chooses among them on validation photos, and writes down why.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.cleaning import HALF
from models.data.manifest import Manifest, read_manifest
from models.data.photos import Photos
from models.data.samplers import best_of_class
from models.data.trusted import selection_photos, with_selection_photos
from models.evaluation.accuracy import Accuracy, accuracy
from models.evaluation.bootstrap import Gain, class_share, gain, standard_error
from models.evaluation.scores import write_scores
from models.networks.inputs import Features, extract
from models.networks.network import best_device
from models.networks.predict import embeddings, score
from models.recipe.config import Balance
from models.training.classifiers import (
    blend,
    class_means,
    hits,
    prior_bias,
    retrain_rows,
    scale_rows,
    set_classifier,
    tau_normalise,
)
from models.training.command import log_progress, parser_for, read_recipe, run
from models.training.job import split_rows
from models.training.sample_weights import label_confidence
from models.training.train import load_network, save_network

log = logging.getLogger(__name__)

LWS_RATE = 10.0  # rows start at hundredths, logarithms of factors have to move by whole units
METHODS = ("none", "tau", "logit_adjustment", "blend", "ncm", "lws", "crt")  # from the gentlest on


@dataclass(frozen=True)
class Embedded:
    """Embeddings (N, d) of photos and their classes (N,); weight (N,) in [0, 1] is how much these are believed, None: fully."""

    embedding: Tensor
    target: NDArray[np.int64]
    weight: Tensor | None = None

    def __getitem__(self, rows: NDArray[np.int64]) -> Embedded:
        at = torch.from_numpy(rows)
        return Embedded(self.embedding[at], self.target[rows], None if self.weight is None else self.weight[at])

    @property
    def trusted(self) -> Embedded:
        """Those that are more right than wrong."""
        return self if self.weight is None else self[np.flatnonzero(self.weight.numpy() >= HALF)]


@dataclass(frozen=True)
class Option:
    """One classifier to choose: `bias` (C,) or None, and rows (C, d) that are tau-normalised by `tau` before use."""

    weight: Tensor
    bias: Tensor | None = None
    tau: float = 0.0
    strength: float = 0.0  # of what was done to the trained one; the smaller is taken where both do

    @property
    def rows(self) -> Tensor:
        return tau_normalise(self.weight, self.tau) if self.tau else self.weight


@dataclass(frozen=True)
class ClassifierChoice:
    """A method's option, with the evidence: mean-class accuracy on validation by strength, and one standard error."""

    method: str
    option: Option
    figures: Accuracy  # on the validation photos
    error: float  # of the difference between this option and the best of the method
    curve: tuple[tuple[float, float], ...]
    hit: NDArray[np.bool_]  # of the validation photos

    def to_dict(self) -> dict[str, object]:
        """For JSON; None where there was no validation photo to measure on."""
        error = None if self.error != self.error else round(self.error, 6)
        what = {"method": self.method, "tau": self.option.strength}
        return {**what, **self.figures.to_dict(), "error": error, "curve": self.curve}


def options(
    method: str, trained: Tensor, known: Embedded, *, counts: NDArray[np.int64], settings: Balance, seed: int
) -> Iterator[Option]:
    """The classifiers of a method, from the gentlest on.

    Args:
        trained: (C, d) the trained rows.
        known: training photos, for what learns from them.
        counts: (C,) training photos per class.
    """
    learning = {"epochs": settings.epochs, "seed": seed}
    if method == "none":
        yield Option(trained)
    elif method == "tau":
        yield from (Option(trained, tau=t, strength=t) for t in grid(settings.tau_max, settings.tau_step))
    elif method == "logit_adjustment":
        yield from (
            Option(trained, prior_bias(counts, t), strength=t) for t in grid(settings.adjust_max, settings.tau_step)
        )
    elif method == "blend":
        yield Option(*blend(trained, known.embedding, known.target, counts=counts, weight=known.weight))
    elif method == "ncm":
        yield Option(*class_means(known.embedding, known.target, num_classes=len(trained), weight=known.weight))
    elif method == "lws":
        right = known.trusted
        yield Option(scale_rows(trained, right.embedding, right.target, lr=LWS_RATE * settings.lr, **learning))
    else:
        right = known.trusted
        yield Option(retrain_rows(right.embedding, right.target, num_classes=len(trained), lr=settings.lr, **learning))


def grid(largest: float, step: float) -> list[float]:
    """0, step, ... up to the largest."""
    return [float(t) for t in np.arange(0, largest + 1e-9, step).round(4)]


def choose_option(
    method: str, ways: Iterator[Option], validation: Embedded, *, counts: NDArray[np.int64], seed: int
) -> ClassifierChoice:
    """The gentlest option whose mean-class accuracy is within one standard error of the best: that of their difference.

    Only classes with validation photos have a say. Without any photo the first option is taken.
    """
    target = validation.target
    found = [(way, hits(way.rows, way.bias, validation.embedding, target)) for way in ways]
    if len(target) == 0:
        return ClassifierChoice(
            method, found[0][0], _figures(found[0][0], validation, counts), float("nan"), (), found[0][1]
        )
    hit = np.stack([each for _, each in found])
    share = class_share(target)
    curve = (hit * share).sum(1) / share.sum()
    best = int(curve.argmax())
    errors = [standard_error(hit[best], other, target, seed=seed) for other in hit]
    chosen = int(np.flatnonzero(curve >= curve[best] - np.array(errors))[0])
    pairs = tuple((way.strength, round(float(a), 6)) for (way, _), a in zip(found, curve, strict=True))
    return ClassifierChoice(
        method, found[chosen][0], _figures(found[chosen][0], validation, counts), errors[chosen], pairs, hit[chosen]
    )


def _figures(option: Option, validation: Embedded, counts: NDArray[np.int64]) -> Accuracy:
    k = min(5, len(counts))
    parts = [functional.linear(e, option.rows, option.bias).topk(k).indices for e in validation.embedding.split(256)]
    ranked = torch.cat([torch.empty(0, k, dtype=torch.int64), *parts]).numpy()
    return accuracy(ranked, validation.target, train_counts=counts)


def choose_classifier(
    trained: Tensor, known: Embedded, validation: Embedded, *, counts: NDArray[np.int64], settings: Balance, confidence: float,
    seed: int,
) -> tuple[ClassifierChoice, list[ClassifierChoice], Gain]:  # fmt: skip
    """What balance.method asks for, all that was tried, and what the former gains over the classifier as it was trained.

    Of "best" the gentlest method that is within one standard error of the best, again that of their difference, and only if its
    gain is proven (`confidence` of models.evaluation.bootstrap): without validation photos the classifier stays as it was trained.
    """
    methods: list[str] = [settings.method]
    if settings.method == "best":
        learnt = () if settings.epochs else ("lws", "crt")
        methods = [name for name in METHODS if name not in learnt] if len(validation.target) else ["none"]
    tried = [choose_option(name, options(name, trained, known, counts=counts, settings=settings, seed=seed), validation,
                    counts=counts, seed=seed) for name in methods]  # fmt: skip
    best = gentlest(tried, validation.target, seed=seed)
    before = hits(trained, None, validation.embedding, validation.target)
    gained = gain(before, best.hit, validation.target, confidence=confidence, seed=seed)
    if settings.method == "best" and not gained.stays:
        best = tried[0]
    return best, tried, gained


def gentlest(tried: list[ClassifierChoice], target: NDArray[np.int64], *, seed: int) -> ClassifierChoice:
    """The first that is within one standard error, that of their difference, of the best."""
    if len(tried) == 1:
        return tried[0]
    top = max(tried, key=lambda choice: choice.figures.mean_class)
    least = [top.figures.mean_class - standard_error(top.hit, choice.hit, target, seed=seed) for choice in tried]
    return next(c for c, bound in zip(tried, least, strict=True) if c.figures.mean_class >= bound)


def rebalance(network: Path, *, data: Path, recipe: Path, member: int, out: Path) -> None:
    """Writes the re-balanced network, its scores and the evidence for the choice (balance.json) to `out`."""
    settings = read_recipe(recipe)
    torch.set_num_threads(settings.train.threads or torch.get_num_threads())
    trained = load_network(network)
    net, seed = trained.network.to(best_device()), settings.members[member].seed
    manifest = with_selection_photos(read_manifest(data), settings.proof.photos)
    rows, held_out = split_rows(manifest, fold=None, num_folds=0)

    def features(chosen: NDArray[np.int64]) -> Features:
        return extract(Photos(manifest, chosen, side=settings.export.input_size), net, size=trained.member.size)

    of_held_out, weight = features(held_out), net.head.classifier.weight.detach().cpu().clone()
    judging = selection_photos(manifest)[held_out]
    validation = Embedded(embeddings(net, of_held_out)[torch.from_numpy(judging)], manifest.target[held_out][judging])
    _tell(validation, manifest)
    known = Embedded(torch.empty(0, weight.shape[1]), np.empty(0, np.int64))
    if settings.balance.needs_training_photos:
        weighs = settings.clean.use == "weigh"
        trusted = torch.from_numpy(label_confidence(manifest, rows, clean=settings.clean)).float() if weighs else None
        known = best_scored(Embedded(embeddings(net, features(rows)), manifest.target[rows], trusted), manifest.score[rows], weight,
                            count=settings.balance.best_photos)  # fmt: skip
    best, tried, gained = choose_classifier(weight, known, validation, counts=manifest.train_counts(), settings=settings.balance,
                                            confidence=settings.proof.confidence, seed=seed)  # fmt: skip
    log.info("%s, tau %.2f: mean-class accuracy %.3f, top-1 %.3f on %d validation photos", best.method,
             best.option.strength, best.figures.mean_class, best.figures.top1, len(validation.target))  # fmt: skip
    set_classifier(net.head, best.option.weight, best.option.bias)
    save_network(out / "network.pt", net, member=trained.member, classes=trained.classes, tau=best.option.tau)
    set_classifier(net.head, best.option.rows, best.option.bias)
    write_scores(
        score(net, of_held_out, ids=manifest.id[held_out], target=manifest.target[held_out]), out / "scores.parquet"
    )
    evidence = {
        "chosen": best.to_dict(),
        "gain": gained.to_dict(),
        "candidates": [choice.to_dict() for choice in tried],
    }
    (out / "balance.json").write_text(json.dumps(evidence, indent=1, allow_nan=False), encoding="utf-8")


def _tell(validation: Embedded, manifest: Manifest) -> None:
    shown, trained = len(np.unique(validation.target)), int(np.count_nonzero(manifest.train_counts()))
    if shown < trained:
        log.warning("validation photos show %d of %d classes; the others have no say in the choice of a classifier%s",
                    shown, trained, "" if shown else ", and there is none")  # fmt: skip


def best_scored(known: Embedded, score: NDArray[np.float32], trained: Tensor, *, count: int) -> Embedded:
    """At most `count` photos of each class, 0 for all: those whose label cleaning believes most.

    Where it judged none, the trained classifier (C, d) says how probable each label is.
    """
    if count == 0:
        return known
    if np.isnan(score).all():
        log_p = [-functional.cross_entropy(e @ trained.T, t, reduction="none")
                 for e, t in zip(known.embedding.split(256), torch.from_numpy(known.target).split(256), strict=True)]  # fmt: skip
        score = torch.cat(log_p).numpy()
    return known[best_of_class(known.target, score, count=count)]


def main() -> None:
    """The command line of one re-balancing."""
    parser = parser_for("data recipe network out", description="Re-balance the classifier of a trained network.")
    parser.add_argument("--member", type=int, default=0)
    args = parser.parse_args()
    log_progress()
    args.out.mkdir(parents=True, exist_ok=True)
    rebalance(args.network, data=args.data, recipe=args.recipe, member=args.member, out=args.out)


if __name__ == "__main__":
    run(main)
