"""Claim: with many classes a bounded loss hardly starts to learn; a warm-up, a logit bias or a matched start cures that.

Synthetic clusters: C centres in 64 dimensions, few photos each, 40 % of the labels moved to another class at random. A head as
in models.networks (linear, batch norm, bias-free classifier) is trained with each loss and each option, with SGD at a rate that
suits cross-entropy and with AdamW, and tested on clean points in the last epoch.

`--classes 100 1000` runs the whole grid, about half an hour on one core; without arguments C = 1,000 and fewer losses.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figure import figure, header
from torch import Tensor, nn

from models.losses import Samples, build_loss, log_odds

WIDTH = 64
NOISE = 0.4
SPREAD = 0.2  # standard deviation of a photo about its centre of norm 1, per dimension: neighbours overlap
EPOCHS = 20
FEW = ("ce", "gce", "agce", "nce+agce")
ALL = ("ce", "gce:q=0.3", "gce", "mae", "agce", "nce+rce", "nce+agce", "anl_ce", "bi_tempered", "ce+sr")
PHOTOS = {100: 40, 1_000: 20, 10_000: 10}


@dataclass(frozen=True)
class Task:
    """Training points with noisy labels, and clean test points."""

    points: Tensor
    given: Tensor
    test_points: Tensor
    test_target: Tensor
    num_classes: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", nargs="*", type=int, default=None)
    parser.add_argument("--methods", nargs="*", default=None, help="name or name:key=value,...")
    parser.add_argument("--options", nargs="*", default=None, choices=list(options()))
    parser.add_argument("--optimisers", nargs="*", default=["sgd", "adamw"], choices=["sgd", "adamw"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--out", type=Path, help="JSON lines of results; runs found there are not repeated")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    header("at 1,000 classes and more, options of the loss decide whether a bounded loss learns")
    methods = args.methods or (ALL if args.classes else FEW)
    done = read(args.out)
    for num_classes in args.classes or [1_000]:
        for optimiser in args.optimisers:
            table(
                num_classes,
                optimiser,
                methods,
                args.options or list(options()),
                args.seeds,
                args.epochs,
                done,
                args.out,
            )


def options(num_classes: int = 2, epochs: int = EPOCHS) -> dict[str, dict[str, Any]]:
    """Options of every loss that are compared."""
    warm = max(round(0.15 * epochs), 1)
    return {
        "none": {},
        "warm-up": {"warmup_ce_epochs": warm, "blend_epochs": warm},
        "logit bias": {"logit_bias": max(log_odds(0.1, num_classes), 0.0)},
        "match initial": {"init_match": "initial"},
        "match batch": {"init_match": "batch"},
    }


def table(
    num_classes: int, optimiser: str, methods: Sequence[str], chosen: Sequence[str], seeds: Sequence[int], epochs: int,
    done: dict[str, float], out: Path | None,
) -> None:  # fmt: skip
    """Prints one row per loss, one column per option; then a figure for the best."""
    print(f"\n| C = {num_classes:,}, {optimiser} | {' | '.join(chosen)} |\n|---|{'--:|' * len(chosen)}", flush=True)
    best: tuple[float, str] = (-1.0, "")
    plain: dict[str, float] = {}
    for method in methods:
        cells = []
        for option in chosen:
            if not applies(method, option):
                cells.append("")
                continue
            accuracy = mean_accuracy(num_classes, optimiser, method, option, seeds, epochs, done, out)
            cells.append(f"{100 * accuracy:.1f}")
            best = max(best, (accuracy, f"{method}, {option}"))
            plain |= {method: accuracy} if option == "none" else {}
        print(f"| `{method}` | {' | '.join(cells)} |", flush=True)
    print()
    figure(f"best accuracy at C = {num_classes:,} with {optimiser}, 40 % wrong labels: {best[1]}", round(best[0], 4),
           target="> cross-entropy", met=best[0] > plain.get("ce", -1), baseline=round(plain.get("ce", -1), 4))  # fmt: skip


def applies(method: str, option: str) -> bool:
    """True if an option applies: cross-entropy has nothing to match or warm up, the bi-tempered loss is not matched by batch."""
    if method == "ce":
        return option in ("none", "logit bias")
    return not (method == "bi_tempered" and option == "match batch")


def mean_accuracy(
    num_classes: int, optimiser: str, method: str, option: str, seeds: Sequence[int], epochs: int, done: dict[str, float],
    out: Path | None,
) -> float:  # fmt: skip
    """Mean over the seeds; runs whose result is known are not repeated."""
    found = []
    for seed in seeds:
        key = f"{num_classes} {optimiser} {method} {option} {seed} {epochs}"
        if key not in done:
            started = time.perf_counter()
            done[key] = run(draw(num_classes, seed), optimiser, method, option, seed, epochs)
            if out:
                line = {"key": key, "accuracy": done[key], "seconds": round(time.perf_counter() - started, 1)}
                with out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
        found.append(done[key])
    return statistics.mean(found)


def read(out: Path | None) -> dict[str, float]:
    """Results of an earlier command."""
    if out is None or not out.exists():
        return {}
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return {line["key"]: line["accuracy"] for line in lines}


def draw(num_classes: int, seed: int) -> Task:
    """Task of a seed, the same for every method."""
    generator = torch.Generator().manual_seed(seed)
    centres = nn.functional.normalize(torch.randn(num_classes, WIDTH, generator=generator), dim=1)
    each = PHOTOS.get(num_classes, 10)
    target = torch.arange(num_classes).repeat_interleave(each)
    points = centres[target] + SPREAD * torch.randn(len(target), WIDTH, generator=generator)
    moved = torch.rand(len(target), generator=generator) < NOISE
    shift = torch.randint(1, num_classes, (len(target),), generator=generator)
    given = torch.where(moved, (target + shift) % num_classes, target)
    test_target = torch.randint(num_classes, (10_000,), generator=generator)
    test_points = centres[test_target] + SPREAD * torch.randn(len(test_target), WIDTH, generator=generator)
    return Task(points, given, test_points, test_target, num_classes)


def run(task: Task, optimiser: str, method: str, option: str, seed: int, epochs: int) -> float:
    """Accuracy on clean test points after the last epoch."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Linear(WIDTH, 2 * WIDTH),
        nn.BatchNorm1d(2 * WIDTH),
        nn.ReLU(),
        nn.Linear(2 * WIDTH, task.num_classes, bias=False),
    )
    loss = build_loss(
        *spec(method)[:1], num_classes=task.num_classes, **spec(method)[1], **options(task.num_classes, epochs)[option]
    )
    given = task.given.numpy()
    loss.begin(
        Samples(np.arange(len(given)).astype(str).astype(object), given, [str(i) for i in range(task.num_classes)])
    )
    batch = 256 if task.num_classes < 10_000 else 1_024
    steps = len(given) // batch
    update = make(optimiser, network)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(update, epochs * steps)
    for epoch in range(epochs):
        loss.start_epoch(epoch)
        for index in torch.randperm(len(given))[: steps * batch].split(batch):
            update.zero_grad()
            loss(network(task.points[index]), task.given[index], index).mean().backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            update.step()
            schedule.step()
        loss.end_epoch()
    network.eval()
    with torch.no_grad():
        answers = torch.cat([network(part).argmax(1) for part in task.test_points.split(1_000)])
    return float((answers == task.test_target).double().mean())


def spec(method: str) -> tuple[str, dict[str, float]]:
    """Text of a method: name:key=value,key=value."""
    name, _, rest = method.partition(":")
    return name, {key: float(value) for key, _, value in (item.partition("=") for item in rest.split(",") if item)}


def make(optimiser: str, network: nn.Module) -> torch.optim.Optimizer:
    """Optimiser, at rates that suit cross-entropy."""
    if optimiser == "sgd":
        return torch.optim.SGD(network.parameters(), lr=0.5, momentum=0.9, weight_decay=1e-4)
    return torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=0.05)


if __name__ == "__main__":
    main()
