"""Photos of known classes with planted wrong labels, which probabilities and embeddings see through by and large."""

from __future__ import annotations

import numpy as np

from models.cleaning import TopK

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def clusters(num: int = 400, *, num_classes: int = 8, wrong: float = 0.25, seed: int = 0) -> Arrays:
    """given labels, true labels, probabilities (N, C) and embeddings (N, 24) that both know the truth by and large."""
    draw = np.random.default_rng(seed)
    true = draw.integers(0, num_classes, num)
    given_labels = np.where(draw.random(num) < wrong, (true + draw.integers(1, num_classes, num)) % num_classes, true)
    logits = draw.normal(size=(num, num_classes))
    logits[np.arange(num), true] += 3
    probs = np.exp(logits)
    embeddings = draw.normal(size=(num_classes, 24))[true] + draw.normal(size=(num, 24))
    return given_labels, true, (probs / probs.sum(1, keepdims=True)).astype(np.float32), embeddings.astype(np.float32)


def as_top_k(labels: np.ndarray, probs: np.ndarray, k: int, *, seed: int = 0) -> TopK:
    """The k best of a dense table, in any order; k = C is the whole of it."""
    order = np.argsort(-probs, axis=1)[:, :k]
    order = np.random.default_rng(seed).permuted(order, axis=1)
    return TopK(order, np.take_along_axis(probs, order, 1), probs[np.arange(len(labels)), labels], probs.shape[1])
