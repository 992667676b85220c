"""Means of a network's weights over its training, which are scored and saved instead of the last ones.

Exponential over the steps (EMA, as of the teacher of Tarvainen and Valpola, NeurIPS 2017) or uniform over the ends of the last
epochs (Izmailov et al., UAI 2018; within one training what Wortsman et al., ICML 2022, call a soup). Statistics of batch norm are
none of the mean: those of the averaged network are measured anew, as what other weights had does not fit it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.recipe.config import Train


class Average:
    """The mean so far of what is learnt, where `settings` ask for one.

    Args:
        learnt: parameters, alike on every worker.
    """

    def __init__(self, trainable_parameters: Sequence[nn.Parameter], settings: Train) -> None:
        self.trainable_parameters, self.settings = trainable_parameters, settings
        self.num = 0  # of weights in it
        self.mean = [p.detach().clone() for p in trainable_parameters] if settings.averages else []

    def end_step(self) -> None:
        """EMA: the decay is (1 + t) / (10 + t), as TensorFlow has it, until it reaches `ema`: first weights are soon forgotten."""
        if self.settings.ema:
            self._add(1 - min(self.settings.ema, (1 + self.num) / (10 + self.num)))

    def end_epoch(self, *, left: int) -> None:
        """Soup: takes part if fewer than `soup_epochs` epochs are left."""
        if left < self.settings.soup_epochs:
            self._add(1 / (self.num + 1))

    @torch.no_grad()
    def _add(self, share: float) -> None:
        for mean, weight in zip(self.mean, self.trainable_parameters, strict=True):
            mean.lerp_(weight, share)
        self.num += 1

    @torch.no_grad()
    def put(self) -> None:
        """Into the network, in the place of the last weights."""
        for mean, weight in zip(self.mean, self.trainable_parameters, strict=True):
            weight.copy_(mean)

    def state_dict(self) -> dict[str, Any]:
        return {"num": self.num, "mean": self.mean}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.num = state["num"]
        for mean, saved in zip(self.mean, state["mean"], strict=True):
            mean.copy_(saved)


@contextmanager
def measuring(network: nn.Module, *, part: nn.Module) -> Iterator[None]:
    """Inside, batch norm in a part of a network takes its mean over all batches as statistics; all else answers as it would."""
    norms = [module for module in part.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for a mean over all
        norm.train()
    yield
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()
