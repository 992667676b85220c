"""Forward correction: turns predictions of true classes into predictions of given labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
    pairs: Tensor  # (C, C) sparse, [given, true]: T[true, given] - rest[true]

    def __init__(self, noise: Noise) -> None:
        super().__init__()
        rest = torch.from_numpy(noise.rest).float()
        positions = torch.stack([torch.from_numpy(noise.given), torch.from_numpy(noise.true)])
        share = torch.from_numpy(noise.share).float() - rest[positions[1]]
        pairs = torch.sparse_coo_tensor(positions, share, (noise.num_classes,) * 2, check_invariants=True).coalesce()
        # Not persistent: the noise is known before training starts, and again after a resume.
        for name, value in (("own", torch.from_numpy(noise.kept).float() - rest), ("rest", rest), ("pairs", pairs)):
            self.register_buffer(name, value, persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """(n, C) -> (n, C) logits whose softmax is P(given); float32, or float64 for float64 input."""
        p = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)
        spread, swapped = p @ self.rest.to(p), torch.sparse.mm(self.pairs.to(p.dtype), p.T).T
        return (p * self.own.to(p) + spread[:, None] + swapped).clamp_min(SMALLEST).log()
