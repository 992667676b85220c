"""Forward correction: turns predictions of true classes into predictions of given labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from models.cleaning import Noise

SMALLEST = 1e-30  # keeps the logarithm of a probability finite


class Correction(nn.Module):
    """log P(given) from logits of true classes: log(softmax(z) T), T[j, k] = P(given = k | true = j), rows sum to 1.

    Patrini et al., CVPR 2017 (arXiv 1609.03683), theorem 2: with corrected logits, the optimum of cross-entropy on
    given labels is its optimum on true labels without correction. A label has less influence the more often it is given
    to photos of the class that the network predicts. T is stored as its pairs, its diagonal and one number per row for
    all other classes, never as C x C.
    """

    own: Tensor  # (C,) T[j, j] - rest[j]
    rest: Tensor  # (C,) T[j, k] of every k that does not form a pair with j

    def __init__(self, noise: Noise) -> None:
        super().__init__()
        share = noise.share - noise.rest[noise.true]
        self.pairs = Pairs(noise.given, noise.true, share, num_classes=noise.num_classes)
        self.turned = Pairs(noise.true, noise.given, share, num_classes=noise.num_classes)
        # Not persistent: the noise is known before training starts, and again after a resume.
        rest = torch.from_numpy(noise.rest).float()
        self.register_buffer("own", torch.from_numpy(noise.kept).float() - rest, persistent=False)
        self.register_buffer("rest", rest, persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """(n, C) -> (n, C) logits whose softmax is P(given); float32, or float64 for float64 input."""
        p = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)
        spread, swapped = p @ self.rest.to(p), _Swapped.apply(p, self.pairs, self.turned)
        return (p * self.own.to(p) + spread[:, None] + swapped).clamp_min(SMALLEST).log()


class Pairs(nn.Module):
    """Sparse matrix (C, C) with the values at [row, column], which multiplies batches (n, C).

    torch's sparse tensors make the host wait in each backward pass on a GPU, to sort the transposed matrix.
    """

    column: Tensor  # (P,)
    value: Tensor  # (P,)
    start: Tensor  # (C + 1,) first pair of each row

    def __init__(
        self, row: NDArray[np.int64], column: NDArray[np.int64], value: NDArray[np.float64], *, num_classes: int
    ) -> None:
        super().__init__()
        order = np.lexsort((column, row))
        start = np.searchsorted(row[order], np.arange(num_classes + 1))
        parts = {"column": column[order], "value": value[order].astype(np.float32), "start": start}
        for name, part in parts.items():
            self.register_buffer(name, torch.from_numpy(part), persistent=False)

    def forward(self, p: Tensor) -> Tensor:
        """(n, C) products of the matrix with each row of p (n, C)."""
        if not len(self.column):
            return torch.zeros_like(p)
        sums = functional.embedding_bag(
            self.column, p.T.contiguous(), self.start, mode="sum", per_sample_weights=self.value.to(p.dtype),
            include_last_offset=True,
        )  # fmt: skip
        return sums.T


class _Swapped(Function):
    @staticmethod
    def forward(ctx: Any, p: Tensor, pairs: Pairs, turned: Pairs) -> Tensor:
        ctx.turned = turned
        swapped: Tensor = pairs(p)
        return swapped

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_swapped: Tensor) -> tuple[Tensor, None, None]:
        return ctx.turned(by_swapped), None, None
