"""Ask a network about a set of photos: scores for cleaning and evaluation, embeddings for balancing."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.inputs import Inputs
from models.network import EMBEDDING, Network
from models.scores import KEEP, Scores


def score(network: Network, inputs: Inputs, *, ids: NDArray[np.object_], target: NDArray[np.int64]) -> Scores:
    """Scores (N rows) of the photos of `inputs`, in its order; N may be 0.

    Args:
        ids: (N,) sample ids.
        target: (N,) classes of their labels, -1 for a label the network does not know.
    """
    k = min(KEEP, network.head.classifier.out_features)
    tops, probs, p_label = [torch.empty(0, k, dtype=torch.int64)], [torch.empty(0, k)], [torch.empty(0)]
    network.eval()
    done = 0
    with torch.inference_mode():
        for batch in inputs.evaluation():
            p = inputs.forward(batch).logits.float().softmax(1)
            wanted = torch.from_numpy(target[done : done + len(p)]).to(p.device)
            done += len(p)
            picked = p.gather(1, wanted.clamp(min=0)[:, None])[:, 0]
            p_label.append(torch.where(wanted >= 0, picked, 0.0).cpu())
            best = p.topk(k)
            tops.append(best.indices.cpu())
            probs.append(best.values.cpu())
    return Scores(
        ids.astype(str), target, torch.cat(p_label).numpy(), torch.cat(tops).numpy(), torch.cat(probs).numpy()
    )


def embeddings(network: Network, inputs: Inputs) -> Tensor:
    """(N, 512) float32 embeddings behind the neck, on the CPU."""
    network.eval()
    with torch.inference_mode():
        parts = [inputs.forward(batch).embedding.float().cpu() for batch in inputs.evaluation()]
    return torch.cat([torch.empty(0, EMBEDDING), *parts]).clone()
