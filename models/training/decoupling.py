"""Re-balance the classifier of a trained network:
`python -m models.training.decoupling --data DIR --recipe FILE --network FILE --member 0 --out DIR`.

After Kang et al., ICLR 2020 (arXiv 1910.09217): the representation is trained on the imbalanced data, and only the
classifier is re-balanced afterwards. `models.training.classifiers` implements the methods; this module chooses among
them on the selection photos and records the evidence in balance.json.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.cleaning import HALF
from models.data.manifest import Manifest, read_manifest
from models.data.samplers import best_of_class
from models.data.trusted import selection_photos, with_selection_photos
from models.evaluation.accuracy import Accuracy, accuracy
from models.evaluation.bootstrap import Gain, class_share, gain, standard_error
from models.evaluation.scores import write_scores
from models.networks.inputs import Features
from models.networks.network import best_device, set_threads
from models.networks.predict import embeddings, score
from models.networks.results import collect
from models.recipe.config import Balance
from models.training.classifiers import (
    BATCH,
    Change,
    blend,
    class_means,
    hits,
    hits_of_changes,
    prior_bias,
    retrain_rows,
    scale_rows,
    set_classifier,
    tau_factors,
    tau_normalise,
)
from models.training.command import log_progress, read_recipe, run, with_features
from models.training.features import frozen_features
from models.training.job import split_rows
from models.training.sample_weights import label_confidence
from models.training.train import load_network, save_network

log = logging.getLogger(__name__)

# factor of the learning rate: weights are about 0.01 in size, but log factors have to move by whole units
LWS_RATE = 10.0
RANKED = 5  # best classes of a photo, of which accuracy is told
METHODS = ("none", "tau", "logit_adjustment", "blend", "ncm", "lws", "crt")  # those that change least come first


@dataclass(frozen=True)
class Embedded:
    """Embeddings (N, d) of photos, their classes (N,), and their label confidence: weight (N,) in [0, 1]; None: 1."""

    embedding: Tensor
    target: NDArray[np.int64]
    weight: Tensor | None = None

    def __getitem__(self, rows: NDArray[np.int64]) -> Embedded:
        positions = torch.from_numpy(rows)
        weight = None if self.weight is None else self.weight[positions]
        return Embedded(self.embedding[positions], self.target[rows], weight)

    def means(self, num_classes: int) -> tuple[Tensor, Tensor]:
        """`class_means` of the photos, by their label confidence."""
        return class_means(self.embedding, self.target, num_classes=num_classes, weight=self.weight)

    @property
    def trusted(self) -> Embedded:
        """The photos whose label is more likely right than wrong."""
        return self if self.weight is None else self[np.flatnonzero(self.weight.numpy() >= HALF)]


@dataclass(frozen=True)
class Option:
    """A candidate classifier: `bias` (C,) or None, and `weight` (C, d), which is tau-normalised by `tau` before use."""

    weight: Tensor
    bias: Tensor | None = None
    tau: float = 0.0
    strength: float = 0.0  # of the change to the trained classifier; the smaller one is preferred

    @property
    def rows(self) -> Tensor:
        """(C, d) rows after tau-normalisation."""
        return tau_normalise(self.weight, self.tau) if self.tau else self.weight

    @property
    def change(self) -> Change:
        """Change of the logits of `weight` that gives those of this classifier."""
        return Change(tau_factors(self.weight, self.tau) if self.tau else None, self.bias)


@dataclass(frozen=True)
class ClassifierChoice:
    """The option chosen for one method, with its evidence on the selection photos."""

    method: str
    option: Option
    figures: Accuracy
    error: float  # standard error of the difference to the method's best option
    curve: tuple[tuple[float, float], ...]  # strength and mean-class accuracy of every option
    hit: NDArray[np.bool_]  # (N,) photos that the option recognises

    def to_dict(self) -> dict[str, object]:
        """Content for JSON; figures are None without selection photos."""
        return {
            "method": self.method,
            "tau": self.option.strength,
            **self.figures.to_dict(),
            "error": None if math.isnan(self.error) else round(self.error, 6),
            "curve": self.curve,
        }


def options(
    method: str, trained: Tensor, known: Embedded, *, means: Callable[[], tuple[Tensor, Tensor]],
    counts: NDArray[np.int64], settings: Balance, seed: int,
) -> Iterator[Option]:  # fmt: skip
    """Candidate classifiers of a method, in order of strength.

    Args:
        trained: (C, d) trained rows.
        known: training photos, used by the methods that train on them.
        means: returns the `class_means` of these photos; two methods use them.
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
        yield Option(*blend(trained, means(), counts=counts))
    elif method == "ncm":
        yield Option(*means())
    elif method == "lws":
        trusted = known.trusted
        yield Option(scale_rows(trained, trusted.embedding, trusted.target, lr=LWS_RATE * settings.lr, **learning))
    else:
        trusted = known.trusted
        yield Option(
            retrain_rows(trusted.embedding, trusted.target, num_classes=len(trained), lr=settings.lr, **learning)
        )


def grid(largest: float, step: float) -> list[float]:
    """0, step, 2 step, ... up to the largest."""
    return [float(t) for t in np.arange(0, largest + 1e-9, step).round(4)]


def choose_option(
    method: str, candidates: Iterator[Option], validation: Embedded, *, counts: NDArray[np.int64], seed: int
) -> ClassifierChoice:
    """The weakest option whose mean-class accuracy is within one standard error (of the difference) of the best.

    Only classes with selection photos count. Without any such photo, the first option is chosen.
    """
    target, tried = validation.target, list(candidates)
    if len(tried) == 1:
        ranked = _ranked(tried[0], validation)
        hit = (ranked[:, 0] == target)[None]
    else:  # the rows of a method are the same
        hit = hits_of_changes(tried[0].weight, [option.change for option in tried], validation.embedding, target)
    chosen, error, curve = 0, math.nan, tuple[tuple[float, float], ...]()
    if len(target):
        share = class_share(target)
        accuracies = (hit * share).sum(1) / share.sum()
        best = int(accuracies.argmax())
        errors = [standard_error(hit[best], other, target, seed=seed) for other in hit]
        chosen = int(np.flatnonzero(accuracies >= accuracies[best] - np.array(errors))[0])
        error = errors[chosen]
        curve = tuple((option.strength, round(float(a), 6)) for option, a in zip(tried, accuracies, strict=True))
    if len(tried) > 1:
        ranked = _ranked(tried[chosen], validation)
    return ClassifierChoice(
        method, tried[chosen], accuracy(ranked, target, train_counts=counts), error, curve, hit[chosen]
    )


def _ranked(option: Option, validation: Embedded) -> NDArray[np.int64]:
    """(N, k) the five best classes by an option, or all of fewer classes, for each selection photo, best first."""
    k, embedding, device = min(RANKED, len(option.weight)), validation.embedding, best_device()
    rows, bias = option.rows.to(device), None if option.bias is None else option.bias.to(device)
    parts = (functional.linear(e.to(device), rows, bias).topk(k).indices for e in embedding.split(BATCH) if len(e))
    return collect(parts, torch.empty(len(embedding), k, dtype=torch.int64)).numpy()


def choose_classifier(
    trained: Tensor,
    known: Embedded,
    validation: Embedded,
    *,
    counts: NDArray[np.int64],
    settings: Balance,
    confidence: float,
    seed: int,
) -> tuple[ClassifierChoice, list[ClassifierChoice], Gain]:
    """The classifier chosen by balance.method, all candidates, and the gain of the best over the trained classifier.

    "best" takes the first of METHODS that is within one standard error (of the difference) of the best, and only if its
    gain is proven (`confidence` of models.evaluation.bootstrap). Without selection photos, the trained classifier
    stays.
    """
    tried = []
    means = cache(partial(known.means, len(trained)))
    for method in methods_to_try(settings, num_photos=len(validation.target)):
        candidates = options(method, trained, known, means=means, counts=counts, settings=settings, seed=seed)
        tried.append(choose_option(method, candidates, validation, counts=counts, seed=seed))
    best = first_within_error(tried, validation.target, seed=seed)
    is_known = tried[0].method == "none"
    before = tried[0].hit if is_known else hits(trained, None, validation.embedding, validation.target)
    gained = gain(before, best.hit, validation.target, confidence=confidence, seed=seed)
    if settings.method == "best" and not gained.stays:
        best = tried[0]
    return best, tried, gained


def methods_to_try(settings: Balance, *, num_photos: int) -> list[str]:
    """Methods that balance.method stands for, given the number of selection photos."""
    if settings.method != "best":
        return [settings.method]
    if not num_photos:
        return ["none"]
    return [name for name in METHODS if settings.epochs or name not in ("lws", "crt")]  # both need epochs


def first_within_error(tried: list[ClassifierChoice], target: NDArray[np.int64], *, seed: int) -> ClassifierChoice:
    """The first choice within one standard error (of the difference) of the most accurate one."""
    if len(tried) == 1:
        return tried[0]
    best = max(tried, key=lambda choice: choice.figures.mean_class)
    for choice in tried:
        error = standard_error(best.hit, choice.hit, target, seed=seed)
        if choice.figures.mean_class >= best.figures.mean_class - error:
            return choice
    return best


def rebalance(network: Path, *, data: Path, recipe: Path, member: int, out: Path, shared: Path | None = None) -> None:
    """Writes the re-balanced network, its scores and the evidence for the choice (balance.json) to `out`."""
    settings = read_recipe(recipe)
    set_threads(settings.train.threads)
    trained = load_network(network)
    net, seed = trained.network.to(best_device()), settings.members[member].seed
    manifest = with_selection_photos(read_manifest(data), settings.proof.photos)
    rows, held_out = split_rows(manifest, fold=None, num_folds=0)

    own = settings.of(member).train
    unchanged = own.backbone_lr_scale == 0 and not settings.finetune.epochs
    folder = shared if unchanged else None

    def features(chosen: NDArray[np.int64]) -> Features:
        return frozen_features(manifest, chosen, net, member=trained.member, side=settings.export.input_size,
                               folder=folder, loaders=own.loaders, on_device=own.decode == "device")  # fmt: skip

    held_out_features, weight = features(held_out), net.head.classifier.weight.detach().cpu().clone()
    selection = selection_photos(manifest)[held_out]
    validation = Embedded(
        embeddings(net, held_out_features)[torch.from_numpy(selection)], manifest.target[held_out][selection]
    )
    _warn_of_missing_classes(validation, manifest)
    known = Embedded(torch.empty(0, weight.shape[1]), np.empty(0, np.int64))
    if settings.balance.needs_training_photos:
        confidence: Tensor | None = None
        if settings.clean.use == "weigh":
            confidence = torch.from_numpy(label_confidence(manifest, rows, clean=settings.clean)).float()
        known = Embedded(embeddings(net, features(rows)), manifest.target[rows], confidence)
        known = best_scored(known, manifest.score[rows], weight, count=settings.balance.best_photos)
    best, tried, gained = choose_classifier(
        weight, known, validation, counts=manifest.train_counts(), settings=settings.balance,
        confidence=settings.proof.confidence, seed=seed,
    )  # fmt: skip
    log.info("%s, tau %.2f: mean-class accuracy %.3f, top-1 %.3f on %d validation photos", best.method,
             best.option.strength, best.figures.mean_class, best.figures.top1, len(validation.target))  # fmt: skip
    set_classifier(net.head, best.option.weight, best.option.bias)
    save_network(out / "network.pt", net, member=trained.member, classes=trained.classes, tau=best.option.tau)
    set_classifier(net.head, best.option.rows, best.option.bias)
    scores = score(net, held_out_features, ids=manifest.id[held_out], target=manifest.target[held_out])
    write_scores(scores, out / "scores.parquet")
    evidence = {
        "chosen": best.to_dict(),
        "gain": gained.to_dict(),
        "candidates": [choice.to_dict() for choice in tried],
    }
    (out / "balance.json").write_text(json.dumps(evidence, indent=1, allow_nan=False), encoding="utf-8")


def _warn_of_missing_classes(validation: Embedded, manifest: Manifest) -> None:
    present, trained = len(np.unique(validation.target)), int(np.count_nonzero(manifest.train_counts()))
    if not present:
        log.warning("there are no validation photos, so the classifier cannot be chosen by accuracy")
    elif present < trained:
        log.warning("only %d of %d classes have validation photos; the choice of a classifier ignores the others",
                    present, trained)  # fmt: skip


def best_scored(known: Embedded, score: NDArray[np.float32], trained: Tensor, *, count: int) -> Embedded:
    """The `count` photos of each class with the best label quality; all photos if `count` is 0.

    Before any cleaning, the probability of the label under the trained classifier (C, d) replaces its quality.
    """
    if count == 0:
        return known
    if np.isnan(score).all():
        pairs = zip(known.embedding.split(256), torch.from_numpy(known.target).split(256), strict=True)
        log_p = (-functional.cross_entropy(e @ trained.T, t, reduction="none") for e, t in pairs)
        score = collect(log_p, torch.empty(len(known.target))).numpy()
    return known[best_of_class(known.target, score, count=count)]


def main() -> None:
    """Command line that re-balances one network."""
    parser = with_features("data recipe network out", description="Re-balance the classifier of a trained network.")
    parser.add_argument("--member", type=int, default=0, help="number of the member in the recipe, from 0")
    args = parser.parse_args()
    log_progress()
    args.out.mkdir(parents=True, exist_ok=True)
    rebalance(args.network, data=args.data, recipe=args.recipe, member=args.member, out=args.out,
              shared=args.features)  # fmt: skip


if __name__ == "__main__":
    run(main)
