"""Re-balance the classifier of a trained network: `python -m models.decoupling --data DIR --recipe FILE --network FILE --out DIR`.

After Kang et al., ICLR 2020 (arXiv 1910.09217): the representation learns from the data as it lies, the classifier is then
retrained with every class equally often (cRT, section 4.1), and its rows are divided by their norm to the power tau
(tau-normalisation, section 4.3). Both are chosen on validation photos, and both choices are written down.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.command import log_progress, run
from models.config import Balance, from_dict
from models.data.manifest import read_manifest
from models.data.photos import Photos
from models.data.samplers import draw_epoch
from models.inputs import Features
from models.job import split_rows
from models.network import Network, best_device
from models.predict import embeddings, score
from models.scores import write_scores
from models.train import load_network, save_network

log = logging.getLogger(__name__)

BATCH = 256


def tau_normalise(weight: Tensor, tau: float) -> Tensor:
    """Rows of a bias-free classifier (C, d), each divided by (its norm / the mean norm)^tau.

    tau 0 changes nothing, tau 1 gives rows of one length. Kang et al. divide by the norm itself; dividing by the mean norm
    as well scales all logits alike, so decisions are theirs while the probabilities keep their temperature, which the mean
    over an ensemble depends on.
    """
    norm = weight.norm(dim=1, keepdim=True).clamp_min(1e-12)  # a row of zeros stays one
    return weight / (norm / norm.mean()) ** tau


def retrain_classifier(
    embedding: Tensor, target: NDArray[np.int64], *, num_classes: int, settings: Balance, seed: int
) -> Tensor:
    """cRT: a fresh classifier (C, 512) on fixed embeddings (N, 512), every class drawn equally often, cross-entropy."""
    torch.manual_seed(seed)
    weight = torch.empty(num_classes, embedding.shape[1]).normal_(std=0.01).requires_grad_()
    optimizer = torch.optim.AdamW([weight], lr=settings.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
    targets = torch.from_numpy(target)
    for epoch in range(settings.epochs):
        drawn = torch.from_numpy(draw_epoch(target, power=0.0, seed=seed, epoch=epoch))
        for positions in drawn.split(BATCH):
            loss = functional.cross_entropy(embedding[positions] @ weight.T, targets[positions])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return weight.detach()


@dataclass(frozen=True)
class Choice:
    """A classifier and its tau, with the evidence: mean-class accuracy on validation per tau, and its standard error."""

    classifier: str  # "trained" or "cRT"
    tau: float
    accuracy: float
    error: float
    curve: tuple[tuple[float, float], ...]

    def to_dict(self) -> dict[str, object]:
        """For JSON; None where there was no validation photo to measure on."""
        return {key: None if value != value else value for key, value in vars(self).items()}


def choose_tau(
    weight: Tensor, embedding: Tensor, target: NDArray[np.int64], *, settings: Balance, name: str, seed: int
) -> Choice:
    """The smallest tau whose mean-class accuracy is within one standard error of the best of the grid.

    Args:
        embedding: (N, 512) of the validation photos; N = 0 leaves tau at 0.
        target: (N,) their classes.
    """
    if len(target) == 0:
        return Choice(name, 0.0, float("nan"), float("nan"), ())
    taus = np.arange(0, settings.tau_max + 1e-9, settings.tau_step).round(4)
    hits = np.stack([((embedding @ tau_normalise(weight, float(t)).T).argmax(1).numpy() == target) for t in taus])
    share = 1 / np.bincount(target)[target]  # each class weighs the same
    curve = (hits * share).sum(1) / share.sum()
    best = int(curve.argmax())
    error = _standard_error(hits[best], share, seed=seed)
    chosen = int(np.flatnonzero(curve >= curve[best] - error)[0])
    pairs = tuple((float(t), round(float(a), 6)) for t, a in zip(taus, curve, strict=True))
    return Choice(name, float(taus[chosen]), float(curve[chosen]), error, pairs)


def _standard_error(hit: NDArray[np.bool_], share: NDArray[np.float64], *, seed: int) -> float:
    """Of the class-weighted mean of hits, by 200 bootstrap draws."""
    draws = np.random.default_rng(seed).integers(len(hit), size=(200, len(hit)))
    return float(((hit * share)[draws].sum(1) / share[draws].sum(1)).std())


def rebalance(network: Path, *, data: Path, recipe: Path, member: int, out: Path) -> None:
    """Writes the re-balanced network, its scores and the evidence for the choice (balance.json) to `out`."""
    settings = from_dict(json.loads(recipe.read_text(encoding="utf-8")))
    torch.set_num_threads(settings.train.threads or torch.get_num_threads())
    trained = load_network(network)
    net, seed = trained.network.to(best_device()), settings.members[member].seed
    manifest = read_manifest(data)
    rows, held_out = split_rows(manifest, fold=None, num_folds=0)

    def features(chosen: NDArray[np.int64]) -> Features:
        return Features(Photos(manifest, chosen, side=settings.export.input_size), net, size=trained.member.size)

    of_held_out = features(held_out)
    validation = (manifest.split[held_out] == "val") & (manifest.target[held_out] >= 0)
    known = manifest.target[held_out][validation]
    embedded = embeddings(net, of_held_out)[torch.from_numpy(validation)]
    weights = {"trained": net.head.classifier.weight.detach().cpu().clone()}
    if settings.balance.epochs:
        weights["cRT"] = retrain_classifier(embeddings(net, features(rows)), manifest.target[rows],
                                            num_classes=len(manifest.classes), settings=settings.balance, seed=seed)  # fmt: skip
    choices = [choose_tau(w, embedded, known, settings=settings.balance, name=n, seed=seed) for n, w in weights.items()]
    best = choices[0]
    for choice in choices[1:]:
        best = choice if choice.accuracy > best.accuracy else best
    log.info("%s classifier, tau %.2f: mean-class accuracy %.3f +- %.3f on %d validation photos",
             best.classifier, best.tau, best.accuracy, best.error, len(known))  # fmt: skip
    set_classifier(net, weights[best.classifier])
    save_network(out / "network.pt", net, member=trained.member, classes=trained.classes, tau=best.tau)
    set_classifier(net, tau_normalise(weights[best.classifier], best.tau))
    write_scores(
        score(net, of_held_out, ids=manifest.id[held_out], target=manifest.target[held_out]), out / "scores.parquet"
    )
    evidence = {"chosen": best.to_dict(), "candidates": [choice.to_dict() for choice in choices]}
    (out / "balance.json").write_text(json.dumps(evidence, indent=1, allow_nan=False), encoding="utf-8")


def set_classifier(network: Network, weight: Tensor) -> None:
    """Puts a weight (C, 512) in place, on the network's device."""
    with torch.no_grad():
        network.head.classifier.weight.copy_(weight)


def main() -> None:
    """The command line of one re-balancing."""
    parser = argparse.ArgumentParser(description="Re-balance the classifier of a trained network.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, required=True, help="a resolved recipe, as JSON")
    parser.add_argument("--network", type=Path, required=True)
    parser.add_argument("--member", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    log_progress()
    args.out.mkdir(parents=True, exist_ok=True)
    rebalance(args.network, data=args.data, recipe=args.recipe, member=args.member, out=args.out)


if __name__ == "__main__":
    run(main)
