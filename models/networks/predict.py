"""Predictions of a network on a set of photos: scores for cleaning and evaluation, answers for a loss, embeddings.

The workers share the computation of scores and answers, and all of them receive the whole result. Results stay on the
device until a pass is over, so that no batch waits for them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import distributed
from models.evaluation.scores import KEEP, Scores
from models.networks.inputs import Inputs, inference
from models.networks.network import EMBEDDING, Network
from models.networks.results import collect
from models.progress import with_progress

PIECE = 32  # rows on a CPU: new memory for the log-probabilities of a whole batch takes longer than computing them


def score(network: Network, inputs: Inputs, *, ids: NDArray[np.object_], target: NDArray[np.int64]) -> Scores:
    """Scores of the N photos of `inputs`, in order; N may be 0.

    Args:
        ids: (N,) ids of the photos.
        target: (N,) classes of their labels; -1 for a label that the network does not know.
    """
    k, num, device = min(KEEP, network.head.classifier.out_features), _num_own(target), network.mean.device
    p_label, probs = torch.empty(num, device=device), torch.empty(num, k, device=device)
    top = torch.empty(num, k, dtype=torch.int64, device=device)
    for rows, log_p, label in _log_probabilities(network, inputs, target, what="scoring"):
        p_label[rows] = torch.where(label >= 0, _of_label(log_p, label).exp(), 0.0)
        best = log_p.topk(k)
        top[rows], probs[rows] = best.indices, best.values.exp()
    columns = [distributed.concat(column).cpu().numpy() for column in (p_label, top, probs)]
    return Scores(ids.astype(str), target, *columns)


def answers(network: Network, inputs: Inputs, *, target: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """(N,) float32 log-probability of each label, and (N,) True if it is the predicted class; on the CPU.

    Args:
        target: (N,) classes of the labels; -1 for a label that the network does not know, which has probability 0.
    """
    num, device = _num_own(target), network.mean.device
    log_ps, hits = torch.empty(num, device=device), torch.empty(num, dtype=torch.bool, device=device)
    for rows, log_p, label in _log_probabilities(network, inputs, target, what="answers for the loss"):
        log_ps[rows] = torch.where(label >= 0, _of_label(log_p, label), -torch.inf)
        hits[rows] = log_p.argmax(1) == label
    return distributed.concat(log_ps).cpu(), distributed.concat(hits).cpu()


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
    """Rows of each piece of this worker's part of the photos, with their log-probabilities (n, C) and labels (n,).

    Args:
        what: name of the pass in its progress.
    """
    network.eval()
    own, done, device = distributed.part(len(target)), 0, network.mean.device
    labels = torch.from_numpy(target[own]).to(device)
    with inference(device):
        for batch in with_progress(inputs.evaluation(own), what, len(labels)):
            distributed.check()
            logits = inputs.part(batch).logits
            for piece in logits.split(PIECE if device.type == "cpu" else len(logits)):
                rows = slice(done, done + len(piece))
                yield rows, piece.float().log_softmax(1), labels[rows]
                done = rows.stop


def embeddings(network: Network, inputs: Inputs) -> Tensor:
    """(N, 512) float32 embeddings after the neck, on the CPU, computed by a single worker."""
    network.eval()
    found = torch.empty(len(inputs), EMBEDDING, device=network.mean.device)
    with inference(network.mean.device):
        batches = with_progress(inputs.evaluation(slice(None)), "embeddings", len(inputs))
        return collect((inputs.part.embedding(batch).float() for batch in batches), found).cpu()
