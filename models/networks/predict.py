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


def score(network: Network, inputs: Inputs, *, ids: NDArray[np.object_], target: NDArray[np.int64]) -> Scores:
    """Scores of the N photos of `inputs`, in order; N may be 0.

    Args:
        ids: (N,) ids of the photos.
        target: (N,) classes of their labels; -1 for a label that the network does not know.
    """
    k = min(KEEP, network.head.classifier.out_features)
    tops, probs, p_label = [torch.empty(0, k, dtype=torch.int64)], [torch.empty(0, k)], [torch.empty(0)]
    for log_p, label in _log_probabilities(network, inputs, target):
        p = log_p.exp()
        picked = p.gather(1, label.clamp(min=0)[:, None])[:, 0]
        p_label.append(torch.where(label >= 0, picked, 0.0).cpu())
        best = p.topk(k)
        tops.append(best.indices.cpu())
        probs.append(best.values.cpu())
    columns = [distributed.concat(torch.cat(parts)).numpy() for parts in (p_label, tops, probs)]
    return Scores(ids.astype(str), target, *columns)


def answers(network: Network, inputs: Inputs, *, target: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """(N,) float32 log-probability of each label, and (N,) True if it is the predicted class; on the CPU.

    Args:
        target: (N,) classes of the labels; -1 for a label that the network does not know, which has probability 0.
    """
    log_ps, hits = [torch.empty(0)], [torch.empty(0, dtype=torch.bool)]
    for log_p, label in _log_probabilities(network, inputs, target):
        picked = log_p.gather(1, label.clamp(min=0)[:, None])[:, 0]
        log_ps.append(torch.where(label >= 0, picked, -torch.inf).cpu())
        hits.append((log_p.argmax(1) == label).cpu())
    return distributed.concat(torch.cat(log_ps)), distributed.concat(torch.cat(hits))


def _log_probabilities(network: Network, inputs: Inputs, target: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
    """Log-probabilities (n, C) and labels (n,) of each batch of this worker's part of the photos."""
    network.eval()
    own = distributed.part(len(target))
    labels, done = torch.from_numpy(target[own]), 0
    with torch.no_grad():
        for batch in inputs.evaluation(own):
            log_p = inputs.forward(batch).logits.float().log_softmax(1)
            yield log_p, labels[done : done + len(log_p)].to(log_p.device)
            done += len(log_p)


def embeddings(network: Network, inputs: Inputs) -> Tensor:
    """(N, 512) float32 embeddings after the neck, on the CPU, computed by a single worker."""
    network.eval()
    with torch.inference_mode():
        parts = [inputs.embedding(batch).float().cpu() for batch in inputs.evaluation(slice(None))]
    return torch.cat([torch.empty(0, EMBEDDING), *parts]).clone()
