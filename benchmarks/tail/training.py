"""One training on fixed features, through the loop that every training goes through."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.config import Train
from models.data.samplers import Sampler
from models.emphasis import Emphasis, class_weights, har_weights
from models.epochs import fit
from models.losses import Samples, build_loss
from models.meta import Constant
from models.network import Head, Network, Normalisation, Output
from tail.sets import FeatureSet


@dataclass(frozen=True)
class Points:
    """Features (2, N, d) through a head; a training draw takes the photo or its mirror image."""

    head: Head
    views: Tensor

    def training(self, order: Sequence[NDArray[np.int64]], generator: torch.Generator) -> Iterator[Tensor]:
        for positions in order:
            view = torch.randint(2, (len(positions),), generator=generator)
            yield self.views[view, torch.from_numpy(positions)]

    def evaluation(self, part: slice) -> Iterator[Tensor]:
        yield self.views[0, part]

    def forward(self, batch: Tensor) -> Output:
        output: Output = self.head(batch)
        return output

    def embedding(self, batch: Tensor) -> Tensor:
        return self.head.embedding(batch)


def trained_head(
    photos: FeatureSet, *, target: NDArray[np.int64], score: NDArray[np.float32], errors: NDArray[np.float64],
    settings: Train, loss: str, params: dict[str, Any], seed: int,
) -> Head:  # fmt: skip
    """A head in evaluation mode, trained on the train split.

    Args:
        target: (N,) labels to learn, of all samples.
        score: (N,) how much each label is believed. errors: (C,) of HAR.
    """
    rows = photos.rows("train")
    torch.manual_seed(seed)
    normalisation = Normalisation((0.0,) * 3, (1.0,) * 3)
    network = Network(
        nn.Identity(), width=photos.views.shape[2], num_classes=photos.num_classes, normalisation=normalisation
    )
    learnt = build_loss(loss, num_classes=photos.num_classes, **params)
    classes = [str(each) for each in range(photos.num_classes)]
    learnt.begin(Samples(id=rows.astype(str).astype(object), target=target[rows], classes=classes))
    sampler = Sampler(target=target[rows], score=score[rows], settings=settings, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        fit(network, learnt, Points(network.head, photos.views[:, rows]), sampler=sampler, out=Path(folder), key="",
            emphasis=_emphasis(settings, target[rows], errors), ask=_nothing, meta=Constant(learnt))  # fmt: skip
    network.head.eval()
    return network.head


def _emphasis(settings: Train, target: NDArray[np.int64], errors: NDArray[np.float64]) -> Emphasis:
    counts = np.bincount(target, minlength=len(errors))
    weight = class_weights(counts, kind=settings.class_weights, beta=settings.class_beta)[target]
    har = torch.from_numpy(settings.har * har_weights(counts, errors)).float() if settings.har else None
    return Emphasis(torch.from_numpy(weight / weight.mean()).float(), har)


def _nothing() -> tuple[Tensor, float]:
    raise AssertionError("no loss of this benchmark asks")


@torch.inference_mode()
def embedded(head: Head, photos: FeatureSet, split: str) -> Tensor:
    """(n, 512) of the samples as they are."""
    return head.embedding(photos.views[0, photos.rows(split)]).clone()
