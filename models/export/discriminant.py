"""Linear discriminants of an embedding: the score `discriminant`, which has a row for each class.

Classes are taken as Gaussians with one covariance around the class means (Lee et al., NeurIPS 2018, arXiv 1807.03888),
of the direction of the embedding from its mean. With W the square root of the inverse covariance, shrunk half-way to a
multiple of the unit matrix, and m the whitened mean of a class, the log density of a photo's v = W u is v m - |m|^2 / 2
plus what is equal for all classes. The largest of them, summed over members first, is large only if all members find
the photo near the mean of the same class. It costs d x d and C x d numbers for each member: 1 MB and 102 MB for 50,030
classes, as much as the classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models import distributed
from models.cleaning.votes import directions

if TYPE_CHECKING:
    from models.export.passes import Spool

SHRINKAGE = 0.5  # share of the unit matrix in the covariance
BLOCK = 1 << 14  # photos whose products are summed at a time

Total = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class Discriminant:
    """Discriminants of one member: centre (d,), whiten (d, d) and rows (C, d), the whitened class means, float32."""

    centre: NDArray[np.float32]
    whiten: NDArray[np.float32]
    rows: NDArray[np.float32]

    @property
    def bias(self) -> NDArray[np.float32]:
        """(C,) -|m|^2 / 2."""
        return own_bias(self.rows)


def own_bias(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    """(C,) -|row|^2 / 2 of rows (C, d)."""
    return np.asarray(-0.5 * np.einsum("ij,ij->i", rows, rows, dtype=np.float64), np.float32)


def fit(
    embedding: NDArray[np.float32] | Spool, target: NDArray[np.int64], *, num_classes: int, total: Total = np.asarray
) -> Discriminant | None:
    """Discriminants from embeddings (N, d) of photos of the classes (N,); None if a class has none, or nothing varies.

    Time O(N d^2 + d^3 + C d^2), memory O(C d + d^2), as only slices of the embeddings are read. The covariance is pooled over
    classes, so a class may have a single photo.

    total: gives the total of an array of sums; `over_workers` if these are photos of one worker of several.
    """
    counts = total(np.bincount(target, minlength=num_classes))
    if not counts.all() or (centre := mean(embedding, counts.sum(), total=total)) is None:
        return None
    sums, products = np.zeros((num_classes, len(centre))), np.zeros((len(centre),) * 2)
    for rows in blocks(embedding):
        unit = directions(embedding[rows], centre).astype(np.float64)
        np.add.at(sums, target[rows], unit)
        products += unit.T @ unit
    sums, products = total(sums), total(products)
    sums /= np.sqrt(counts)[:, None]  # so that sums.T @ sums is the scatter of the class means
    whiten = inverse_root((products - sums.T @ sums) / counts.sum())
    sums /= np.sqrt(counts)[:, None]  # the class means
    return None if whiten is None else Discriminant(centre, whiten, (sums @ whiten).astype(np.float32))


def over_workers(own: NDArray[Any]) -> NDArray[Any]:
    """Sum over the workers of arrays of one shape."""
    distributed.barrier()  # one part may take longer than an exchange waits
    added: NDArray[Any] = distributed.summed(torch.from_numpy(own)).numpy()
    return added


def mean(embedding: NDArray[np.float32] | Spool, num: int, *, total: Total) -> NDArray[np.float32] | None:
    """(d,) mean of all `num` rows, of which these may be a part; None if a value is not finite."""
    own = sum((embedding[rows].sum(0, dtype=np.float64) for rows in blocks(embedding)), np.zeros(embedding.shape[1]))
    centre = np.asarray(total(own) / num, np.float32)
    return centre if np.isfinite(centre).all() else None


def blocks(embedding: NDArray[np.float32] | Spool) -> Iterator[slice]:
    """Slices of BLOCK rows, from the first to the last."""
    return (slice(start, start + BLOCK) for start in range(0, len(embedding), BLOCK))


def inverse_root(covariance: NDArray[np.float64]) -> NDArray[np.float32] | None:
    """(d, d) symmetric inverse root of a covariance that is shrunk and has a mean variance of 1; None for one of zeros."""
    mean = float(np.trace(covariance)) / len(covariance)
    if mean < 1e-12:
        return None
    values, vectors = np.linalg.eigh(covariance / mean)
    shrunk = (1 - SHRINKAGE) * np.maximum(values, 0) + SHRINKAGE
    return np.asarray((vectors / np.sqrt(shrunk)) @ vectors.T, np.float32)


class Rows(nn.Module):
    """Module of one member's discriminants."""

    centre: Tensor
    whiten: Tensor

    def __init__(self, fitted: Discriminant) -> None:
        super().__init__()
        self.register_buffer("centre", torch.from_numpy(fitted.centre))
        self.register_buffer("whiten", torch.from_numpy(fitted.whiten))
        self.rows = nn.Linear(fitted.rows.shape[1], len(fitted.rows))
        self.rows.weight.data, self.rows.bias.data = torch.from_numpy(fitted.rows), torch.from_numpy(fitted.bias)

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, C) discriminants of the mean direction of n crops (n, B, d)."""
        away = embedding - self.centre
        unit = away / away.norm(dim=2, keepdim=True).clamp_min(
            1e-12
        )  # normalize() would export the batch size of the photos
        table: Tensor = self.rows(unit.mean(0) @ self.whiten)
        return table
