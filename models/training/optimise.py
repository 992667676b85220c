"""Optimiser, its parameter groups, and the learning rate schedule."""

from __future__ import annotations

import math
from typing import Any

import timm
import timm.optim
import torch
from torch import Tensor, nn

from models.errors import ConfigError
from models.networks.network import Network
from models.recipe.config import Train
from models.recipe.registry import closest

MOMENTUM = 0.9  # of SGD
STEP = 0.1  # factor of the learning rate at each of train.step_epochs


def make_optimizer(network: Network, loss: nn.Module, settings: Train) -> torch.optim.Optimizer:
    """The optimiser. The backbone has its own rate; biases, norms and parameters of the loss have no weight decay."""
    groups = [{"params": [p for p in loss.parameters() if p.requires_grad], "lr": settings.lr, "weight_decay": 0.0}]
    for part, scale in ((network.backbone, settings.backbone_lr_scale), (network.head, 1.0)):
        for decays in (True, False):
            chosen = [p for p in part.parameters() if p.requires_grad and (p.ndim > 1) == decays]
            groups.append({"params": chosen, "lr": settings.lr * scale, "weight_decay": settings.weight_decay * decays})
    groups = [group for group in groups if group["params"] and group["lr"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=MOMENTUM)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=network.mean.device.type == "cuda")
    return timms_optimizer(groups, settings)


def timms_optimizer(groups: list[dict[str, Any]], settings: Train) -> torch.optim.Optimizer:
    """One of timm's optimisers, with its own defaults.

    Raises:
        ConfigError: timm has none of this name.
    """
    known = [name for name in timm.optim.list_optimizers() if isinstance(name, str)]
    if settings.optimizer not in known:
        raise ConfigError(
            f"train.optimizer: timm has no {settings.optimizer!r}{closest(settings.optimizer, known)}; set adamw, sgd, or "
            "another name of timm.optim.list_optimizers()"
        )
    optimizer: torch.optim.Optimizer = timm.optim.create_optimizer_v2(groups, settings.optimizer, lr=settings.lr)
    return optimizer


def trainable_parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All parameters that the optimiser changes, in its order."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def learning_rate(step: int, *, steps: int, settings: Train) -> float:
    """Factor of the learning rate in [0, 1]: linear warm-up, then cosine decay to 0 or steps at train.step_epochs."""
    warm = settings.warmup_epochs * steps
    if step < warm:
        return (step + 1) / (warm + 1)
    if settings.schedule == "step":
        return STEP ** sum(step >= epoch * steps for epoch in settings.step_epochs)
    progress = (step - warm) / max(settings.epochs * steps - warm, 1)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def absolute_weights(network: Network, *, frozen: bool) -> Tensor:
    """L1 norm of the trained matrices and convolutions, as used with active negative losses (Ye et al., NeurIPS 2023)."""
    part = network.head if frozen else network
    return torch.stack([p.abs().sum() for p in part.parameters() if p.ndim > 1]).sum()
