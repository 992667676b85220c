"""Averages of a network's weights over its training, scored and saved instead of the last weights.

Either an exponential moving average over the steps (EMA, like the teacher of Tarvainen and Valpola, NeurIPS 2017), or a
uniform average over the ends of the last epochs (SWA: Izmailov et al., UAI 2018; within one training, this is what
Wortsman et al., ICML 2022, call a soup). Batch norm statistics are not averaged, because statistics of other weights do
not fit the averaged ones: they are recomputed with the averaged network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.recipe.config import Train


class Average:
    """Running average of the trainable parameters, if `settings` ask for one.

    Args:
        trainable_parameters: parameters of the optimiser, with the same values on every worker.
    """

    def __init__(self, trainable_parameters: Sequence[nn.Parameter], settings: Train) -> None:
        self.trainable_parameters, self.settings = trainable_parameters, settings
        self.num = 0  # weights averaged so far
        self.mean = [p.detach().clone() for p in trainable_parameters] if settings.averages else []

    def end_step(self) -> None:
        """Updates the EMA. Its decay is (1 + t) / (10 + t), as in TensorFlow, up to `ema`: early weights fade fast."""
        if self.settings.ema:
            self._add(1 - min(self.settings.ema, (1 + self.num) / (10 + self.num)))

    def end_epoch(self, *, left: int) -> None:
        """Adds the weights to the uniform average if fewer than `soup_epochs` epochs are left."""
        if left < self.settings.soup_epochs:
            self._add(1 / (self.num + 1))

    @torch.no_grad()
    def _add(self, share: float) -> None:
        if self.mean:
            torch._foreach_lerp_(
                self.mean, list[Tensor](self.trainable_parameters), share
            )  # one launch on a GPU instead of hundreds
        self.num += 1

    @torch.no_grad()
    def apply(self) -> None:
        """Copies the average into the network."""
        for mean, weight in zip(self.mean, self.trainable_parameters, strict=True):
            weight.copy_(mean)

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {"num": self.num, "mean": self.mean}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.num = state["num"]
        for mean, saved in zip(self.mean, state["mean"], strict=True):
            mean.copy_(saved)


@contextmanager
def recomputing_bn(network: nn.Module, *, part: nn.Module) -> Iterator[None]:
    """Context in which batch norm in a part of a network collects the mean statistics of all batches.

    Everything else is in evaluation mode.
    """
    norms = [module for module in part.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch then averages over all batches
        norm.train()
    yield
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()
