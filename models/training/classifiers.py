"""Classifiers made from a trained one and fixed embeddings: rows (C, d), and a bias (C,) where the method has one.

All are linear in the embedding, so each is the last layer of the exported graph and costs nothing there. After Kang et al.,
ICLR 2020 (arXiv 1910.09217): cRT (section 4.1), tau-normalisation (4.3), LWS (4.4), nearest class mean (4.2); and after Menon et
al., ICLR 2021 (arXiv 2007.07314): logit adjustment of a trained classifier (equation 9).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import distributed
from models.networks.margins import Angular

if TYPE_CHECKING:
    from models.networks.inputs import Inputs
    from models.networks.network import Network


from collections.abc import Callable, Iterator

from torch import nn
from torch.nn import functional

from models.data.samplers import draw_epoch
from models.losses.base import COUNT_FLOOR

BATCH = 256
TINY = 1e-12
NEVER = -1e4  # a class without photos is not answered; finite, so that half precision can hold it
SCALES = np.geomspace(0.02, 50, 40)  # tried for the temperature of class means


def tau_normalise(weight: Tensor, tau: float) -> Tensor:
    """Rows of a bias-free classifier (C, d), each divided by (its norm / the mean norm)^tau.

    tau 0 changes nothing, tau 1 gives rows of one length. Kang et al. divide by the norm itself; dividing by the mean norm
    as well scales all logits alike, so decisions are theirs while the probabilities keep their temperature, which the mean
    over an ensemble depends on.
    """
    norm = weight.norm(dim=1, keepdim=True).clamp_min(1e-12)  # a row of zeros stays one
    return weight / (norm / norm.mean()) ** tau


def prior_bias(counts: NDArray[np.int64], tau: float) -> Tensor:
    """(C,) -tau log prior of classes with so many training photos; a class without any counts as with one. tau 0 gives zeros."""
    n = counts.clip(COUNT_FLOOR)
    return torch.from_numpy(-tau * np.log(n / n.sum())).float()


def retrain_rows(
    embedding: Tensor, target: NDArray[np.int64], *, num_classes: int, epochs: int, lr: float, seed: int
) -> Tensor:
    """cRT: fresh rows (C, d) on fixed embeddings (N, d), every class drawn equally often, cross-entropy."""
    torch.manual_seed(seed)
    weight = torch.empty(num_classes, embedding.shape[1]).normal_(std=0.01).requires_grad_()
    optimizer = torch.optim.AdamW([weight], lr=lr, weight_decay=0.05)
    _learn(optimizer, lambda batch: embedding[batch] @ weight.T, target, epochs=epochs, seed=seed)
    return weight.detach()


def scale_rows(
    weight: Tensor, embedding: Tensor, target: NDArray[np.int64], *, epochs: int, lr: float, seed: int
) -> Tensor:
    """LWS: the trained rows (C, d), each times a factor of its own, learnt as `retrain_rows` learns rows; (C, d).

    The logarithm of the factor is what is learnt, so that none changes its sign.
    """
    log_scale = torch.zeros(len(weight), requires_grad=True)
    optimizer = torch.optim.AdamW([log_scale], lr=lr, weight_decay=0.0)
    _learn(optimizer, lambda batch: (embedding[batch] @ weight.T) * log_scale.exp(), target, epochs=epochs, seed=seed)
    return weight * log_scale.detach().exp()[:, None]


def _learn(
    optimizer: torch.optim.Optimizer, answer: Callable[[Tensor], Tensor], target: NDArray[np.int64], *, epochs: int, seed: int
) -> None:  # fmt: skip
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    targets = torch.from_numpy(target)
    for epoch in range(epochs):
        drawn = torch.from_numpy(draw_epoch(target, power=0.0, seed=seed, epoch=epoch))
        for batch in drawn.split(BATCH):
            loss = functional.cross_entropy(answer(batch), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()


def class_means(
    embedding: Tensor, target: NDArray[np.int64], *, num_classes: int, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """NCM: rows (C, d) and bias (C,) of the classifier by the angle to each class's mean, once the mean of all is taken off.

    With u the direction of a centred class mean and g the mean of all, u (e - g) = u e - u g: linear in the embedding e, and the
    class of the largest is that of the smallest angle. Its temperature is the one under which the training photos' own labels are
    most probable, every class alike. `weight` (N,): what each photo counts in its class, from 0 up; None: alike.
    """
    centre, targets = embedding.mean(0), torch.from_numpy(target)
    weight = torch.ones(len(target)) if weight is None else weight
    total = torch.zeros(num_classes, embedding.shape[1]).index_add_(0, targets, weight[:, None] * (embedding - centre))
    counts = torch.zeros(num_classes).index_add_(0, targets, weight)
    rows = functional.normalize(total, dim=1)
    bias = torch.where(counts > 0, -(rows @ centre), NEVER)
    share = weight.double() / counts.double().clamp_min(TINY)[targets]
    pieces = [(embedding[part], targets[part], share[part]) for part in _parts(len(target))]

    def nll(scale: float) -> float:
        return sum(float((functional.cross_entropy(scale * (e @ rows.T + bias), t, reduction="none") * s).sum())
                   for e, t, s in pieces)  # fmt: skip

    scale = min(map(float, SCALES), key=nll)
    return scale * rows, torch.where(counts > 0, scale * bias, NEVER)


def blend(
    trained: Tensor, embedding: Tensor, target: NDArray[np.int64], *, counts: NDArray[np.int64], weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Rows (C, d) and bias (C,) of the mean logits of two: the trained classifier, adjusted by the full prior, and the class means.

    Ours. The trained rows know what tells siblings apart and have learnt some wrong labels, the means know neither; their
    mistakes differ. Both count every class alike, and both are as sure as the training photos made them.
    """
    means, bias = class_means(embedding, target, num_classes=len(trained), weight=weight)
    return (trained + means) / 2, (prior_bias(counts, 1.0) + bias) / 2


def hits(weight: Tensor, bias: Tensor | None, embedding: Tensor, target: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,) whether the first answer to each embedding (N, d) is its class."""
    targets = torch.from_numpy(target)
    found = [
        functional.linear(embedding[part], weight, bias).argmax(1) == targets[part] for part in _parts(len(target))
    ]
    return torch.cat([torch.empty(0, dtype=torch.bool), *found]).numpy()


def _parts(n: int) -> Iterator[slice]:
    """A few rows at a time: never N x C."""
    return (slice(start, start + BATCH) for start in range(0, n, BATCH))


def set_classifier(head: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Puts rows (C, d) and a bias (C,) in the place of a head's classifier, on its device."""
    classifier = nn.Linear(weight.shape[1], len(weight), bias=bias is not None)
    with torch.no_grad():
        classifier.weight.copy_(weight)
        if bias is not None:
            classifier.bias.copy_(bias)
    head.classifier = classifier.to(next(head.parameters()).device)


@torch.no_grad()
def linear_rows(network: Network, inputs: Inputs, target: NDArray[np.int64]) -> Tensor:
    """(C, d) rows of a linear classifier in the place of an angular one: of each class the centre nearest to most of its photos.

    Deng et al. 2020 call it dominant. Equal centres: the first. Every worker must call this.

    Args:
        target: (N,) classes of the photos of `inputs`.
    """
    classifier = network.head.classifier
    assert isinstance(classifier, Angular)
    rows = classifier.rows.unflatten(0, (classifier.out_features, -1))
    num_classes, centres, _ = rows.shape
    network.eval()
    own = distributed.part(len(target))
    labels, done = torch.from_numpy(target[own]).to(rows.device), 0
    count = torch.zeros(num_classes, centres, device=rows.device)
    for batch in inputs.evaluation(own) if centres > 1 else ():
        embedding = inputs.embedding(batch)
        of = labels[done : done + len(embedding)]
        done += len(embedding)
        chosen = (rows[of] @ embedding[:, :, None]).squeeze(2).argmax(1)
        count.index_put_((of, chosen), torch.ones_like(of, dtype=count.dtype), accumulate=True)
    dominant = distributed.summed(count).argmax(1)
    return rows[torch.arange(num_classes, device=rows.device), dominant]
