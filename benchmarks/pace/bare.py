"""The bare training step: forward, cross-entropy, backward and update on one batch that is on the device already."""

from __future__ import annotations

import time

import torch
from torch.nn import functional

from models.networks.network import build_network
from models.recipe.config import Recipe


class BareStep:
    """The network of a recipe's member with its head, in channels-last, and AdamW as in trainings.

    Args:
        half: compute in bfloat16.
    """

    def __init__(self, recipe: Recipe, *, num_classes: int, device: str, half: bool) -> None:
        (member,), settings = recipe.members, recipe.train
        self.settings, self.device, self.half = settings, device, half
        network = build_network(member, num_classes=num_classes).train()
        self.network = network.to(device, memory_format=torch.channels_last)
        draw = torch.Generator().manual_seed(0)
        photos = torch.rand(settings.batch_size, 3, member.size, member.size, generator=draw)
        self.photos = photos.to(device, memory_format=torch.channels_last)
        self.target = torch.randint(num_classes, (settings.batch_size,), generator=draw).to(device)
        learning = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            learning, lr=settings.lr, weight_decay=settings.weight_decay, fused=device == "cuda"
        )

    def photos_per_s(self, steps: int) -> float:
        """Speed over these steps, after two that do not count."""
        torch.set_num_threads(self.settings.threads or torch.get_num_threads())
        for _ in range(2):
            self._step()
        begun = self._now()
        for _ in range(steps):
            self._step()
        return steps * len(self.photos) / (self._now() - begun)

    def _step(self) -> None:
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.half):
            logits = self.network(self.photos).logits
        self.optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(logits, self.target).backward()
        self.optimizer.step()

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()
