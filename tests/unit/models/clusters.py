"""Photos of known classes with planted wrong labels; probabilities and embeddings mostly agree with the true ones."""

from __future__ import annotations

import numpy as np

from models.cleaning import TopK
from models.cleaning.names import Names

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
BRANDS, KINDS = ("Arla", "Valio", "Oatly", "Alpro", "Yoggi"), ("Milk", "Cream", "Yoghurt", "Butter", "Juice", "Kefir")
NAMES = [f"{brand} {kind}" for brand in BRANDS for kind in KINDS]


def clusters(num: int = 400, *, num_classes: int = 8, wrong: float = 0.25, seed: int = 0) -> Arrays:
    """Given labels (N,), true labels (N,), probabilities (N, C) and embeddings (N, 24) close to the true classes."""
    draw = np.random.default_rng(seed)
    true = draw.integers(0, num_classes, num)
    given_labels = np.where(draw.random(num) < wrong, (true + draw.integers(1, num_classes, num)) % num_classes, true)
    logits = draw.normal(size=(num, num_classes))
    logits[np.arange(num), true] += 3
    probs = np.exp(logits)
    embeddings = draw.normal(size=(num_classes, 24))[true] + draw.normal(size=(num, 24))
    return given_labels, true, (probs / probs.sum(1, keepdims=True)).astype(np.float32), embeddings.astype(np.float32)


def named_clusters(names: list[str], tilt: float, *, each: int = 12, seed: int = 0) -> Arrays:
    """The same for products of which 30 % have the label of another one, with a tilt towards similar names."""
    draw, num = np.random.default_rng(seed), len(names)
    likeness = Names(names).likeness(np.repeat(np.arange(num), num), np.tile(np.arange(num), num)).reshape(num, num)
    share = np.exp(tilt * likeness.astype(np.float64)) * (1 - np.eye(num))
    true = np.repeat(np.arange(num), each)
    other = np.array([draw.choice(num, p=share[label] / share[label].sum()) for label in true])
    given_labels = np.where(draw.random(len(true)) < 0.3, other, true)
    probs = np.exp(2 * np.eye(num)[true] + draw.normal(size=(len(true), num)))
    embeddings = draw.normal(size=(num, 24))[true] + 2 * draw.normal(size=(len(true), 24))
    return given_labels, true, (probs / probs.sum(1, keepdims=True)).astype(np.float32), embeddings.astype(np.float32)


def as_top_k(labels: np.ndarray, probs: np.ndarray, k: int, *, seed: int = 0) -> TopK:
    """The k best classes of a dense table, in any order; with k = C the whole table."""
    order = np.argsort(-probs, axis=1)[:, :k]
    order = np.random.default_rng(seed).permuted(order, axis=1)
    return TopK(order, np.take_along_axis(probs, order, 1), probs[np.arange(len(labels)), labels], probs.shape[1])
