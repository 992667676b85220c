"""timm's own way to train: its dataset, loader, transforms and optimiser around a plain step."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from torch.nn import functional

from models.networks.network import build_network
from models.recipe.config import Recipe


class TimmLoop:
    """Epochs over a folder per class, on the network of a recipe's member, with the arguments that timm's train.py passes.

    Args:
        workers: processes that decode.
        equal: channels-last and, on a GPU, bfloat16, as our loop; False: timm's defaults, contiguous float32.
    """

    def __init__(
        self, recipe: Recipe, folder: Path, *, num_classes: int, device: str, workers: int, equal: bool
    ) -> None:
        (member,), self.settings = recipe.members, recipe.train
        self.device, self.equal, self.best = torch.device(device), equal, 0.0  # photos/s
        self.layout = torch.channels_last if equal else torch.contiguous_format
        network = build_network(member, num_classes=num_classes).train()
        mean, std = (tuple(values.flatten().tolist()) for values in (network.mean, network.std))
        self.network = network.to(self.device, memory_format=self.layout)
        self.optimizer = create_optimizer_v2(
            network, opt="adamw", lr=self.settings.lr, weight_decay=self.settings.weight_decay
        )
        dataset = create_dataset("", root=str(folder), is_training=True, batch_size=self.settings.batch_size)
        self.loader = create_loader(
            dataset, input_size=(3, member.size, member.size), batch_size=self.settings.batch_size, is_training=True,
            mean=mean, std=std, num_workers=workers, device=self.device, pin_memory=device == "cuda",
        )  # fmt: skip

    def photos_per_s(self) -> float:
        """Speed over one epoch."""
        torch.set_num_threads(self.settings.threads or torch.get_num_threads())
        begun, count = self._now(), 0
        for photos, target in self.loader:
            self._step(photos.contiguous(memory_format=self.layout), target)
            count += len(target)
        speed = count / (self._now() - begun)
        self.best = max(self.best, speed)
        return speed

    def _step(self, photos: torch.Tensor, target: torch.Tensor) -> None:
        half = self.equal and self.device.type == "cuda"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            logits = self.network.head(self.network.backbone(photos)).logits  # the loader has normalised the photos
            loss = functional.cross_entropy(logits, target)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()
