"""Re-balanced classifiers, made from a trained one and fixed embeddings: rows (C, d), and a bias (C,) for some methods.

All are linear in the embedding, so each can be the last layer of the exported graph at no extra cost. Methods of Kang
et al., ICLR 2020 (arXiv 1910.09217): cRT (section 4.1), nearest class mean (4.2), tau-normalisation (4.3), LWS (4.4);
and of Menon et al., ICLR 2021 (arXiv 2007.07314): logit adjustment of a trained classifier (equation 9).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models import distributed
from models.data.samplers import draw_epoch
from models.losses.base import COUNT_FLOOR
from models.networks.margins import Angular
from models.networks.network import best_device
from models.progress import Progress, with_progress

if TYPE_CHECKING:
    from models.networks.inputs import Inputs
    from models.networks.network import Network

BATCH = 256
TINY = 1e-12
NEVER = -1e4  # bias of a class without photos, which is then never predicted; finite, to fit half precision
SCALES = np.geomspace(0.02, 50, 40)  # inverse temperatures tried for the class means
FITTED = 5_000  # photos that decide on one temperature, at most; with 50,030 classes a million would take hours
ROWS = 16_384  # embeddings that are added to class sums at a time
PIECE = 32  # rows of logits that many factors are tried on; with 50,030 classes they take 6 MB and stay in the cache


def tau_normalise(weight: Tensor, tau: float) -> Tensor:
    """Rows of a bias-free classifier (C, d), each divided by (its norm / the mean norm)^tau.

    tau 0 changes nothing; tau 1 gives all rows the same length. Kang et al. divide by the norm alone. The mean norm
    scales all logits equally, so the predicted classes are theirs, but the probabilities keep their temperature, which
    matters for the average over an ensemble.
    """
    return weight * tau_factors(weight, tau)[:, None]


def tau_factors(weight: Tensor, tau: float) -> Tensor:
    """(C,) factors of the rows (C, d), and so of their logits, that `tau_normalise` applies."""
    norm = weight.norm(dim=1).clamp_min(1e-12)  # a row of zeros stays zero
    return (norm / norm.mean()) ** -tau


def prior_bias(counts: NDArray[np.int64], tau: float) -> Tensor:
    """(C,) -tau log prior, from the counts of training photos; an empty class counts as one photo. Zeros for tau 0."""
    n = counts.clip(COUNT_FLOOR)
    return torch.from_numpy(-tau * np.log(n / n.sum())).float()


def retrain_rows(
    embedding: Tensor, target: NDArray[np.int64], *, num_classes: int, epochs: int, lr: float, seed: int
) -> Tensor:
    """cRT: new rows (C, d), trained on fixed embeddings (N, d) with cross-entropy and class-balanced sampling."""
    torch.manual_seed(seed)
    device = best_device()  # embeddings of millions of photos stay where they are; a batch of them is sent
    weight = torch.empty(num_classes, embedding.shape[1]).normal_(std=0.01).to(device).requires_grad_()
    optimizer = torch.optim.AdamW([weight], lr=lr, weight_decay=0.05)
    _fit(optimizer, lambda batch: embedding[batch].to(device) @ weight.T, target, epochs=epochs, seed=seed)
    return weight.detach().cpu()


def scale_rows(
    weight: Tensor, embedding: Tensor, target: NDArray[np.int64], *, epochs: int, lr: float, seed: int
) -> Tensor:
    """LWS: (C, d) trained rows, each multiplied by a factor that is trained like the rows of `retrain_rows`.

    The trainable parameter is the logarithm of the factor, so the factor stays positive.
    """
    device = best_device()
    rows, log_scale = weight.to(device), torch.zeros(len(weight), device=device, requires_grad=True)
    optimizer = torch.optim.AdamW([log_scale], lr=lr, weight_decay=0.0)
    _fit(
        optimizer,
        lambda batch: (embedding[batch].to(device) @ rows.T) * log_scale.exp(),
        target,
        epochs=epochs,
        seed=seed,
    )
    return weight * log_scale.detach().exp().cpu()[:, None]


def _fit(
    optimizer: torch.optim.Optimizer,
    logits: Callable[[Tensor], Tensor],
    target: NDArray[np.int64],
    *,
    epochs: int,
    seed: int,
) -> None:
    """Class-balanced epochs of cross-entropy on the logits of positions."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    targets, progress = torch.from_numpy(target), Progress("classifier", epochs * len(target))
    for epoch in range(epochs):
        drawn = torch.from_numpy(draw_epoch(target, power=0.0, seed=seed, epoch=epoch))
        progress.note = f"epoch {epoch + 1} of {epochs}"
        for batch in drawn.split(BATCH):
            predicted = logits(batch)
            loss = functional.cross_entropy(predicted, targets[batch].to(predicted.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            progress.add(len(batch), loss=loss.item)
        schedule.step()
    progress.done()


def class_means(
    embedding: Tensor, target: NDArray[np.int64], *, num_classes: int, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """NCM: rows (C, d) and bias (C,) of a classifier by the angle to each class mean, about the global mean.

    With u the direction of a centred class mean and g the global mean, u (e - g) = u e - u g is linear in the embedding
    e, and its largest value belongs to the class at the smallest angle. The temperature maximises the likelihood of the
    training labels, with equal weight for every class.

    Args:
        weight: (N,) weight >= 0 of each photo within its class; None: equal weights.
    """
    centre, targets = embedding.mean(0), torch.from_numpy(target)
    weight = torch.ones(len(target)) if weight is None else weight
    total, counts = torch.zeros(num_classes, embedding.shape[1]), torch.zeros(num_classes)
    for part, label, share in zip(embedding.split(ROWS), targets.split(ROWS), weight.split(ROWS), strict=True):
        total.index_add_(0, label, share[:, None] * (part - centre))
        counts.index_add_(0, label, share)
    rows = functional.normalize(total, dim=1)
    bias = torch.where(counts > 0, -(rows @ centre), NEVER)
    few = slice(None, None, -(-len(target) // FITTED) or 1)  # ids are hashes, so their order is a random one
    nll = _nll_of_scales(embedding[few], targets[few], rows, bias, weight=weight[few])
    scale = float(SCALES[nll.argmin()])
    return scale * rows, torch.where(counts > 0, scale * bias, NEVER)


def _nll_of_scales(
    embedding: Tensor, target: Tensor, rows: Tensor, bias: Tensor, *, weight: Tensor
) -> NDArray[np.float64]:
    """(S,) NLL of the labels (n,) with each of SCALES, with equal weight for every class that has one of the n photos."""
    counts = torch.zeros(len(rows)).index_add_(0, target, weight)
    share = weight.double() / counts.double().clamp_min(TINY)[target]
    nll, device = np.zeros(len(SCALES)), best_device()
    rows, bias = rows.to(device), bias.to(device)
    for part in _parts(len(target), "class means"):
        logits, label = embedding[part].to(device) @ rows.T + bias, target[part].to(device)
        for number, scale in enumerate(map(float, SCALES)):
            losses = functional.cross_entropy(scale * logits, label, reduction="none")
            nll[number] += float((losses.cpu() * share[part]).sum())
    return nll


def blend(trained: Tensor, means: tuple[Tensor, Tensor], *, counts: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Rows (C, d) and bias (C,) whose logits are the mean of `class_means` and of the prior-adjusted trained classifier.

    Our own method. The trained rows separate similar classes but have fitted some wrong labels; the class means do
    neither, so their mistakes differ. Both treat all classes equally, and both have temperatures fitted to the training
    photos.
    """
    rows, bias = means
    return (trained + rows) / 2, (prior_bias(counts, 1.0) + bias) / 2


def hits(weight: Tensor, bias: Tensor | None, embedding: Tensor, target: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,) True for each embedding (N, d) whose predicted class is its target; a tie is a miss."""
    return hits_of_changes(weight, [Change(bias=bias)], embedding, target)[0]


def hits_of_changes(
    weight: Tensor, changes: Sequence[Change], embedding: Tensor, target: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """(O, N) `hits` of a classifier (C, d) after each of O changes of its logits, which are computed once for all of them."""
    targets, hit = torch.from_numpy(target), torch.empty(len(changes), len(target), dtype=torch.bool)
    device = best_device()
    weight, changes = weight.to(device), [change.to(device) for change in changes]
    changed = torch.empty(PIECE, len(weight), device=device)
    for part in _parts(len(target), "predicted classes"):
        logits, labels = embedding[part].to(device) @ weight.T, targets[part].to(device)
        for start in range(0, len(logits), PIECE):
            rows = slice(start, min(start + PIECE, len(logits)))
            found = [_leads(change.of(logits[rows], out=changed), labels[rows]) for change in changes]
            hit[:, part.start + start : part.start + rows.stop] = torch.stack(found).cpu()
    return hit.numpy()


def _leads(logits: Tensor, label: Tensor) -> Tensor:
    """(n,) True for each photo whose label (n,) has the only largest of its logits (n, C), which are changed."""
    column = label[:, None]
    own = logits.gather(1, column)[:, 0]
    return own > logits.scatter_(1, column, -torch.inf).amax(1)  # amax is many times as fast as argmax


class Change(NamedTuple):
    """A change of the logits of all photos: each class has a factor (C,), and a bias (C,) that is added; None for neither."""

    factor: Tensor | None = None
    bias: Tensor | None = None

    def to(self, device: torch.device) -> Change:
        """The same on a device."""
        return Change(*(None if each is None else each.to(device) for each in self))

    def of(self, logits: Tensor, *, out: Tensor) -> Tensor:
        """The changed logits (n, C), in the first rows of `out`."""
        changed = out[: len(logits)]
        if self.factor is None:
            changed.copy_(logits)
        else:
            torch.mul(logits, self.factor, out=changed)
        return changed if self.bias is None else changed.add_(self.bias)


def _parts(n: int, what: str) -> Iterator[slice]:
    """Slices of BATCH rows, so that logits of all photos (N x C) are never held at once; `what` names the progress."""
    progress = Progress(what, n)
    for start in range(0, n, BATCH):
        yield slice(start, start + BATCH)
        progress.add(min(BATCH, n - start))
    progress.done()


def set_classifier(head: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Replaces a head's classifier by one with these rows (C, d) and bias (C,), on the same device."""
    classifier = nn.Linear(weight.shape[1], len(weight), bias=bias is not None)
    with torch.no_grad():
        classifier.weight.copy_(weight)
        if bias is not None:
            classifier.bias.copy_(bias)
    head.classifier = classifier.to(next(head.parameters()).device)


@torch.no_grad()
def linear_rows(network: Network, inputs: Inputs, target: NDArray[np.int64]) -> Tensor:
    """(C, d) rows that replace those of an angular classifier: for each class, the centre nearest to most of its photos.

    Deng et al. 2020 call it the dominant centre. Ties go to the first. Every worker must call this function.

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
    batches = inputs.evaluation(own) if centres > 1 else ()
    for batch in with_progress(batches, "dominant centres", len(labels)):
        embedding = inputs.part.embedding(batch)
        label = labels[done : done + len(embedding)]
        done += len(embedding)
        nearest = (rows[label] @ embedding[:, :, None]).squeeze(2).argmax(1)
        count.index_put_((label, nearest), torch.ones_like(label, dtype=count.dtype), accumulate=True)
    dominant = distributed.summed(count).argmax(1)
    return rows[torch.arange(num_classes, device=rows.device), dominant]
