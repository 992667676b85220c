"""Train one network: `python -m models.train --data DIR --recipe FILE.json --member 0 --out DIR`.

Read from top to bottom. What it leaves in --out:
    network.pt       the trained network with its classes
    scores.parquet   what it says of photos it was not trained on: validation and test; with --fold, the fold and validation
    metrics.jsonl    one object per epoch
    checkpoint.pt    only while it runs: a killed training continues there, at most one epoch back, bit for bit on a CPU
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from models import checkpoint
from models.command import log_progress, run
from models.config import Member, Recipe, Train, digest, from_dict, to_dict
from models.data.manifest import Manifest, read_manifest
from models.data.photos import Photos
from models.data.samplers import draw_epoch, folds
from models.errors import ManifestError
from models.inputs import Features, Inputs, Views
from models.losses import build_loss
from models.network import Network, best_device, build_network, count_parameters
from models.predict import score
from models.scores import write_scores

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training: which photos, which network, where to."""

    data: Path  # a materialised data version
    recipe: Recipe
    member: int
    out: Path
    fold: int | None = None  # leave this fold of the training photos out, and score it

    @property
    def train(self) -> Train:
        epochs = self.recipe.train.epochs if self.fold is None else self.recipe.clean.epochs
        return Train(**(vars(self.recipe.train) | {"epochs": epochs}))

    @property
    def key(self) -> str:
        """Names everything that the result depends on."""
        labels = hashlib.sha256((self.data / "labels.parquet").read_bytes()).hexdigest()
        recipe = self.recipe
        parts = (recipe.members[self.member], recipe.loss, self.train, recipe.augment, recipe.export.input_size)
        return digest(*parts, None if self.fold is None else [self.fold, recipe.clean.folds], labels)


def train(job: Job) -> None:
    """Trains the network of a job, or continues where a killed run left it."""
    torch.set_num_threads(job.train.threads or torch.get_num_threads())
    member = job.recipe.members[job.member]
    torch.manual_seed(member.seed)
    manifest = read_manifest(job.data)
    rows, held_out = split_rows(manifest, fold=job.fold, num_folds=job.recipe.clean.folds)
    if len(rows) < 2:
        raise ManifestError(
            f"{job.data / 'labels.parquet'}: {len(rows)} photos are kept for training; deliver at least two"
        )
    device = best_device()
    network = build_network(member, num_classes=len(manifest.classes)).to(device)
    log.info("%s: %d photos, %d classes, %d parameters on %s", member.backbone, len(rows), len(manifest.classes),
             count_parameters(network), device)  # fmt: skip
    inputs = make_inputs(job, network, manifest, rows)
    fit(job, network, inputs, target=manifest.target[rows])
    answers = score(network, make_inputs(job, network, manifest, held_out),
                    ids=manifest.id[held_out], target=manifest.target[held_out])  # fmt: skip
    write_scores(answers, job.out / "scores.parquet")
    save_network(job.out / "network.pt", network, member=member, classes=manifest.classes)
    (job.out / "checkpoint.pt").unlink(missing_ok=True)


def split_rows(manifest: Manifest, *, fold: int | None, num_folds: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the photos to train on and of those to score; nothing is ever in both."""
    usable = manifest.kept & (manifest.split == "train")
    rows = np.flatnonzero(usable)
    if fold is None:
        return rows, np.flatnonzero(np.isin(manifest.split, ["val", "test"]) & manifest.kept)
    of_fold = folds(manifest.target[rows], manifest.id[rows], num_folds=num_folds) == fold
    validation = np.flatnonzero(manifest.kept & (manifest.split == "val"))
    return rows[~of_fold], np.concatenate([rows[of_fold], validation])


def make_inputs(job: Job, network: Network, manifest: Manifest, rows: NDArray[np.int64]) -> Inputs:
    """Random views, or the fixed features of a frozen backbone."""
    photos = Photos(manifest, rows, side=job.recipe.export.input_size)
    size = job.recipe.members[job.member].size
    if job.train.backbone_lr_scale == 0:
        return Features(photos, network, size=size)
    return Views(photos, network, size=size, augment=job.recipe.augment)


def fit(job: Job, network: Network, inputs: Inputs, *, target: NDArray[np.int64]) -> None:
    """The training loop."""
    settings, seed = job.train, job.recipe.members[job.member].seed
    device = network.mean.device
    loss = build_loss(job.recipe.loss.name, num_classes=network.head.classifier.out_features, **job.recipe.loss.params)
    steps = min(math.ceil(len(target) / settings.batch_size), len(target) // 2)  # batch norm needs two photos
    optimizer = make_optimizer(network, settings)
    schedule = LambdaLR(optimizer, lambda step: learning_rate(step, steps=steps, settings=settings))
    resume = job.out / "checkpoint.pt"
    first = restore(resume, job.key, network, optimizer, schedule) if resume.exists() else 0
    forget_after(job.out / "metrics.jsonl", first)
    targets = torch.from_numpy(target).to(device)
    for epoch in range(first, settings.epochs):
        started = time.perf_counter()
        torch.manual_seed(seed * 1_000_003 + epoch)  # dropout, the same after a resume
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        drawn = draw_epoch(target, power=settings.sampling_power, seed=seed, epoch=epoch)
        order = np.array_split(drawn, steps)
        train_mode(network, frozen=settings.backbone_lr_scale == 0)
        total = 0.0
        for positions, batch in zip(order, inputs.training(order, generator), strict=True):
            index = torch.from_numpy(positions).to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                output = inputs.forward(batch)
            value = loss(output.logits, targets[index], index).mean()
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            total += value.item() * len(positions)
        seconds = time.perf_counter() - started
        figures = {
            "loss": total / len(drawn),
            "lr": float(schedule.get_last_lr()[0]),
            "photos_per_s": len(drawn) / seconds,
        }
        report(job.out, epoch=epoch + 1, of=settings.epochs, **figures)
        state = {
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
        }
        checkpoint.save(resume, {"key": job.key, "epoch": epoch + 1, **state})


def train_mode(network: Network, *, frozen: bool) -> None:
    """Training mode, in which a frozen backbone keeps its statistics."""
    network.train()
    if frozen:
        network.backbone.eval()


def make_optimizer(network: Network, settings: Train) -> torch.optim.Optimizer:
    """AdamW; no decay on biases and norms, and the backbone at its own rate."""
    groups = []
    for part, scale in ((network.backbone, settings.backbone_lr_scale), (network.head, 1.0)):
        for decays in (True, False):
            chosen = [p for p in part.parameters() if p.requires_grad and (p.ndim > 1) == decays]
            groups.append({"params": chosen, "lr": settings.lr * scale, "weight_decay": settings.weight_decay * decays})
    return torch.optim.AdamW([group for group in groups if group["params"] and group["lr"]])


def learning_rate(step: int, *, steps: int, settings: Train) -> float:
    """Factor in [0, 1]: linear warm-up, then cosine to 0 over the whole training."""
    warm = settings.warmup_epochs * steps
    if step < warm:
        return (step + 1) / (warm + 1)
    progress = (step - warm) / max(settings.epochs * steps - warm, 1)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def restore(path: Path, key: str, network: Network, optimizer: torch.optim.Optimizer, schedule: LambdaLR) -> int:
    """Loads a checkpoint and gives the epoch to go on with."""
    content = checkpoint.load(path, key=key)
    network.load_state_dict(content["network"])
    optimizer.load_state_dict(content["optimizer"])
    schedule.load_state_dict(content["schedule"])
    log.info("continuing after epoch %d", content["epoch"])
    return int(content["epoch"])


def forget_after(metrics: Path, epoch: int) -> None:
    """Cuts the lines of epochs that a killed run reported and could not save."""
    if metrics.exists():
        lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        metrics.write_text("".join(lines[:epoch]), encoding="utf-8")


def report(out: Path, *, epoch: int, of: int, **figures: float) -> None:
    """One line of metrics.jsonl; four lines of the log in a whole training."""
    line = {"epoch": epoch, **{key: round(value, 6) for key, value in figures.items()}}
    with (out / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    if epoch % max(of // 4, 1) == 0 or epoch == of:
        log.info("epoch %d of %d  loss %.3f  %.0f photos/s", epoch, of, line["loss"], line["photos_per_s"])


def save_network(path: Path, network: Network, *, member: Member, classes: list[str], tau: float = 0.0) -> None:
    """A network with all that is needed to build it again."""
    content = {"member": to_dict(member), "classes": list(classes), "tau": tau, "state": network.state_dict()}
    checkpoint.save(path, content)


@dataclass(frozen=True)
class Trained:
    """A network as `save_network` wrote it, in evaluation mode; tau is not yet applied to its classifier."""

    network: Network
    member: Member
    classes: list[str]
    tau: float


def load_network(path: Path) -> Trained:
    """What `save_network` wrote."""
    content = checkpoint.load(path)
    member = from_dict({"name": "", "members": [content["member"] | {"weights": ""}]}).members[0]
    network = build_network(member, num_classes=len(content["classes"]))
    network.load_state_dict(content["state"])
    return Trained(network.eval(), member, content["classes"], content["tau"])


def main() -> None:
    """The command line of one training."""
    parser = argparse.ArgumentParser(description="Train one network of a recipe on a materialised data version.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, required=True, help="a resolved recipe, as JSON")
    parser.add_argument("--member", type=int, default=0)
    parser.add_argument("--fold", type=int)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    log_progress()
    args.out.mkdir(parents=True, exist_ok=True)
    recipe = from_dict(json.loads(args.recipe.read_text(encoding="utf-8")))
    train(Job(data=args.data, recipe=recipe, member=args.member, fold=args.fold, out=args.out))


if __name__ == "__main__":
    run(main)
