"""Predictions of a network on a set of photos: scores for cleaning and evaluation, answers for a loss, embeddings.

The workers share the computation of scores and answers, and all of them receive the whole result.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import distributed
from models.evaluation.scores import KEEP, Scores
from models.networks.inputs import Inputs
from models.networks.network import EMBEDDING, Network
from models.networks.results import collect
from models.progress import with_progress


def score(network: Network, inputs: Inputs, *, ids: NDArray[np.object_], target: NDArray[np.int64]) -> Scores:
    """Scores of the N photos of `inputs`, in order; N may be 0.

    Args:
        ids: (N,) ids of the photos.
        target: (N,) classes of their labels; -1 for a label that the network does not know.
    """
    k, num = min(KEEP, network.head.classifier.out_features), _num_own(target)
    p_label, top, probs = torch.empty(num), torch.empty(num, k, dtype=torch.int64), torch.empty(num, k)
    for rows, log_p, label in _log_probabilities(network, inputs, target, what="scoring"):
        p_label[rows] = torch.where(label >= 0, _of_label(log_p, label).exp(), 0.0).cpu()
        best = log_p.topk(k)
        top[rows], probs[rows] = best.indices.cpu(), best.values.exp().cpu()
    columns = [distributed.concat(column).numpy() for column in (p_label, top, probs)]
    return Scores(ids.astype(str), target, *columns)


def answers(network: Network, inputs: Inputs, *, target: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """(N,) float32 log-probability of each label, and (N,) True if it is the predicted class; on the CPU.

    Args:
        target: (N,) classes of the labels; -1 for a label that the network does not know, which has probability 0.
    """
    log_ps, hits = torch.empty(_num_own(target)), torch.empty(_num_own(target), dtype=torch.bool)
    for rows, log_p, label in _log_probabilities(network, inputs, target, what="answers for the loss"):
        log_ps[rows] = torch.where(label >= 0, _of_label(log_p, label), -torch.inf).cpu()
        hits[rows] = (log_p.argmax(1) == label).cpu()
    return distributed.concat(log_ps), distributed.concat(hits)


def _num_own(target: NDArray[np.int64]) -> int:
    """Number of photos of this worker's part."""
    own = distributed.part(len(target))
    return own.stop - own.start


def _of_label(log_p: Tensor, label: Tensor) -> Tensor:
    """(n,) log-probability of each label; that of class 0 for a label that the network does not know."""
    return log_p.gather(1, label.clamp(min=0)[:, None])[:, 0]


def _log_probabilities(
    network: Network, inputs: Inputs, target: NDArray[np.int64], *, what: str
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows of each batch in this worker's part of the photos, with their log-probabilities (n, C) and labels (n,).

    Args:
        what: name of the pass in its progress.
    """
    network.eval()
    own = distributed.part(len(target))
    labels, done = torch.from_numpy(target[own]), 0
    with torch.no_grad():
        for batch in with_progress(inputs.evaluation(own), what, len(labels)):
            log_p = inputs.forward(batch).logits.float().log_softmax(1)
            rows = slice(done, done + len(log_p))
            yield rows, log_p, labels[rows].to(log_p.device)
            done = rows.stop


def embeddings(network: Network, inputs: Inputs) -> Tensor:
    """(N, 512) float32 embeddings after the neck, on the CPU, computed by a single worker."""
    network.eval()
    found = torch.empty(len(inputs), EMBEDDING)
    with torch.inference_mode():
        batches = with_progress(inputs.evaluation(slice(None)), "embeddings", len(inputs))
        return collect((inputs.embedding(batch).float() for batch in batches), found)
