"""Forward correction: what a network says of true classes becomes what it should say of labels as they are given."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.cleaning import Noise

SMALLEST = 1e-30  # a probability whose logarithm is finite


class Correction(nn.Module):
    """log P(given) of logits of true classes: log(softmax(z) T), T[j, k] = P(given = k | true = j), rows sum to 1.

    Patrini et al., CVPR 2017 (arXiv 1609.03683), theorem 2: cross-entropy of these has its optimum where that of z has it on true
    labels. What is known to be confused is then no reason to learn: a label pulls less, the more often it is given for what the
    network sees. T is held as its pairs, its diagonal and one number for all other classes of a row, never C x C.
    """

    own: Tensor  # (C,) T[j, j] beyond rest[j]
    rest: Tensor  # (C,) T[j, k] of every k that is no pair with j
    pairs: Tensor  # (C, C) sparse, [given, true]: T[true, given] beyond rest[true]

    def __init__(self, noise: Noise) -> None:
        super().__init__()
        rest = torch.from_numpy(noise.rest).float()
        place = torch.stack([torch.from_numpy(noise.given), torch.from_numpy(noise.true)])
        share = torch.from_numpy(noise.share).float() - rest[place[1]]
        pairs = torch.sparse_coo_tensor(place, share, (noise.num_classes,) * 2, check_invariants=True).coalesce()
        for name, value in (("own", torch.from_numpy(noise.kept).float() - rest), ("rest", rest), ("pairs", pairs)):
            self.register_buffer(
                name, value, persistent=False
            )  # known before training begins, and again after a resume

    def forward(self, logits: Tensor) -> Tensor:
        """(n, C) -> (n, C), whose softmax are the probabilities of given labels; float32, or float64 from float64."""
        p = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)
        spread, swapped = p @ self.rest.to(p), torch.sparse.mm(self.pairs.to(p.dtype), p.T).T
        return (p * self.own.to(p) + spread[:, None] + swapped).clamp_min(SMALLEST).log()
