"""A loss with state per photo, and trainings by several workers: `torchrun ... -m tests.recording_loss DATA OUT`."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import models.training.train
from models import losses
from models.distributed import gather, rank, workers, world
from models.losses import Samples
from models.losses.base import LossBatch
from models.networks.network import Network, Normalisation
from models.recipe.config import Augment, Loss, Member, Recipe, Train, from_dict
from models.training.job import Job

RECIPE = from_dict(
    {
        "name": "tiny",
        "members": [{"backbone": "test_resnet", "size": 32, "seed": 3}],
        "train": {"epochs": 3, "batch_size": 8, "sampling_power": 0.5, "progressive": True, "best_epochs": 1, "best_photos": 4,
                  "class_weights": "effective", "class_beta": 0.9, "l1": 1e-3, "checkpoint_minutes": 0},
        "loss": {"name": "ce"},
        "export": {"input_size": 40},
    }
)  # fmt: skip
MARVEL = dataclasses.replace(RECIPE, loss=Loss(name="marvel", params={"start_epoch": 1, "run": 1}),
                             train=dataclasses.replace(RECIPE.train, har=0.5))  # fmt: skip
ALL = dataclasses.replace(
    RECIPE,
    loss=Loss(name="gce"),
    members=(dataclasses.replace(RECIPE.members[0], head="arcface", centres=2, margin_rad=0.2),),
    augment=Augment(mixup=0.5, cutmix=1.0, blur=0.5, hue_deg=20.0, holes=2),
    train=dataclasses.replace(RECIPE.train, optimizer="sgd", schedule="step", step_epochs=(1.5,), lr=0.05, ema=0.8),
)
SHARDED = dataclasses.replace(
    RECIPE,
    loss=Loss(name="marvel", params={"start_epoch": 1, "run": 1}),
    train=dataclasses.replace(RECIPE.train, l1=0.0, micro_batch=2),
)


class RecordingLoss(losses.Loss):
    """Cross-entropy that records log p_y of each photo and weights photos by it from the next epoch on."""

    needs_index = True

    def __init__(self, num_classes: int, *, halt_after: int = -1) -> None:
        super().__init__(num_classes)
        self.gain = nn.Parameter(torch.tensor([0.5]))
        self.steps_left = halt_after

    def begin(self, samples: Samples) -> None:
        count = len(samples.target)
        self.sums, self.times, self.kept = (
            torch.zeros(count, dtype=torch.float64),
            torch.zeros(count),
            torch.ones(count),
        )
        self.index, self.seen = torch.empty(0, dtype=torch.int64), torch.empty(0)

    def start_epoch(self, epoch: int) -> None:
        super().start_epoch(epoch)
        if hasattr(self, "sums"):
            self.weights = self.kept * (1 + (self.sums / self.times.clamp(min=1)).float())

    def value(self, batch: LossBatch) -> Tensor:
        if self.steps_left == 0:
            raise KeyboardInterrupt
        self.steps_left -= 1
        assert batch.index is not None
        self.index = torch.cat([self.index, batch.index])
        self.seen = torch.cat([self.seen, batch.log_p.detach()])
        return -batch.log_p * self.weights[batch.index] * self.gain + (self.gain - 1) ** 2

    def end_epoch(self) -> None:
        index, seen = gather(self.index, self.seen)
        self.sums.index_add_(0, index, seen.double())
        self.times.index_add_(0, index, torch.ones(len(index)))
        self.index, self.seen = index[:0], seen[:0]

    def wants_answers(self, epoch: int) -> bool:
        return epoch == 1

    def take_answers(self, log_p: Tensor, *, accuracy: float) -> None:
        self.kept = (log_p > log_p.quantile(0.3)).float() * (0.5 + accuracy)

    def figures(self) -> dict[str, float]:
        return {"gain": self.gain.item(), "kept": float(self.kept.mean())}

    def get_extra_state(self) -> dict[str, Tensor]:
        index, seen = gather(self.index, self.seen)
        return {"sums": self.sums, "times": self.times, "kept": self.kept, "index": index, "seen": seen}

    def set_extra_state(self, state: Any) -> None:
        vars(self).update(state)
        if rank():
            self.index, self.seen = self.index[:0], self.seen[:0]


def plain_network(member: Member, *, num_classes: int) -> Network:
    """Network without batch norm, so that the output for a photo depends only on that photo.

    As some of timm's backbones do, it has a parameter that no output depends on.
    """
    backbone = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    backbone.register_parameter("unused", nn.Parameter(torch.zeros(2, 2)))
    network = Network(backbone, width=32, num_classes=num_classes, normalisation=Normalisation((0.5,) * 3, (0.3,) * 3),
                      member=member)  # fmt: skip
    network.head.neck = nn.Identity()  # type: ignore[assignment]  # a neck without batch statistics
    return network


def training_job(data: Path, out: Path, recipe: Recipe = RECIPE, **settings: Any) -> Job:
    """Training with some keys of `train` changed."""
    out.mkdir(exist_ok=True)
    changed = dataclasses.replace(recipe, train=Train(**vars(recipe.train) | settings))
    return Job(data=data, recipe=changed, member=0, out=out)


def train(job: Job, *, halt_after: int = -1) -> None:
    """Trains a plain network with the recipe's loss, or, for "ce", with RecordingLoss, which can halt it."""
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(models.training.train, "build_network", plain_network)
        if job.recipe.loss.name == "ce":
            patch.setattr(
                models.training.train,
                "build_loss",
                lambda _, num_classes: RecordingLoss(num_classes, halt_after=halt_after),
            )
        models.training.train.train(job)


def main() -> None:
    """Trains on views, on features and with state. The last training is halted by 2 workers, and resumed by another number."""
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    with workers():
        train(training_job(data, out / f"views-{world()}"))
        train(training_job(data, out / f"marvel-{world()}", MARVEL, l1=0.0))
        if world() == 2:
            train(training_job(data, out / f"features-{world()}", backbone_lr_scale=0.0))
            train(training_job(data, out / f"all-{world()}", ALL))
            train(training_job(data, out / f"sharded-{world()}", SHARDED, shard=True))
        train(training_job(data, out / "moved"), halt_after=5 if world() == 2 else -1)


if __name__ == "__main__":
    main()
