"""Classes told apart by angles: ArcFace (Deng et al., CVPR 2019) and sub-centre ArcFace (Deng et al., ECCV 2020).

While it learns, an `Angular` classifier gives cosines, and `add_margin` makes a label harder to reach before the loss sees it.
Afterwards `linear_rows` is an ordinary classifier of embeddings of one length, which balancing, cleaning and the exported graph
take as any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.recipe.config import Member

if TYPE_CHECKING:  # both have a head, and the head has these
    pass

LEAST_SIN = 1e-3  # of an angle that the margin is added to: the slope of an angle by its cosine is 1 / sin


class Sphere(nn.Module):
    """(N, d) to the same directions, of length sqrt(d): as batch norm gives on average, so that both heads learn at one rate."""

    def forward(self, embedding: Tensor) -> Tensor:
        return functional.normalize(embedding) * math.sqrt(embedding.shape[1])


class Angular(nn.Linear):
    """Logits (N, C), scale times the cosine between an embedding of length sqrt(d) and the nearest centre of each class.

    Args:
        centres: of a class. Wrong labels find one of their own, and leave the others to the class.
    """

    def __init__(self, width: int, num_classes: int, *, scale: float, centres: int) -> None:
        super().__init__(width, num_classes * centres, bias=False)
        self.out_features, self.scale = num_classes, scale

    @property
    def rows(self) -> Tensor:
        """(C x centres, d), those of a class side by side: what an embedding is multiplied by."""
        return functional.normalize(self.weight) * (self.scale / math.sqrt(self.in_features))

    def forward(self, embedding: Tensor) -> Tensor:
        return nearest(functional.linear(embedding, self.rows), self.out_features)


def angular(rows: Tensor, *, scale: float) -> Angular:
    """The classifier of one centre a class that `linear_rows` gave rows (C, d) of, to learn on."""
    made = Angular(rows.shape[1], len(rows), scale=scale, centres=1)
    with torch.no_grad():
        made.weight.copy_(rows)
    return made


def nearest(scores: Tensor, num_classes: int) -> Tensor:
    """(N, C x centres) to (N, C), the largest of each class; (N, C) stays."""
    return scores if scores.shape[1] == num_classes else scores.unflatten(1, (num_classes, -1)).amax(2)


def add_margin(logits: Tensor, target: Tensor, *, scale: float, margin_rad: float) -> Tensor:
    """(N, C) scale cos(angle) to the same, but scale cos(angle + margin) for the target: Deng et al. 2019, equation 3.

    Where that would turn back, beyond pi, cos(angle) - margin sin(margin) is taken, as in the authors' code.
    """
    own = logits.gather(1, target[:, None])
    cos = own.to(torch.promote_types(own.dtype, torch.float32)) / scale
    sin = (1 - cos**2).clamp(min=LEAST_SIN**2).sqrt()
    moved = cos * math.cos(margin_rad) - sin * math.sin(margin_rad)
    moved = torch.where(cos > -math.cos(margin_rad), moved, cos - margin_rad * math.sin(margin_rad))
    return logits.scatter(1, target[:, None], (scale * moved).to(logits.dtype))


def margin_of(member: Member) -> Callable[[Tensor, Tensor], Tensor] | None:
    """What a loss is to do to the logits of a member's network first; None of a linear head."""
    if member.head == "linear":
        return None
    return partial(add_margin, scale=member.scale, margin_rad=member.margin_rad)
