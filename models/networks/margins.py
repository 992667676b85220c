"""Angular-margin classifiers: ArcFace (Deng et al., CVPR 2019) and sub-centre ArcFace (Deng et al., ECCV 2020).

During training, an `Angular` classifier computes cosines, and `add_margin` reduces the logit of the label before the
loss. Afterwards, `linear_rows` turns it into an ordinary linear classifier of embeddings of constant length, which
balancing, cleaning and the exported graph treat like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.recipe.config import Member

# floor for the sine of the angle before the margin: the derivative of an angle by its cosine is -1 / sin
MIN_SIN = 1e-3


class Sphere(nn.Module):
    """Projection of embeddings (N, d) onto the sphere of radius sqrt(d).

    sqrt(d) is the mean length after batch norm, so that both kinds of heads suit the same learning rate.
    """

    def forward(self, embedding: Tensor) -> Tensor:
        """(N, d) embeddings of length sqrt(d)."""
        return functional.normalize(embedding) * math.sqrt(embedding.shape[1])


class Angular(nn.Linear):
    """Classifier by angles: logits (N, C) are scale times the cosine to the nearest centre of each class.

    Embeddings have length sqrt(d).

    Args:
        centres: centres per class. Wrong labels gather at a centre of their own and leave the others clean.
    """

    def __init__(self, width: int, num_classes: int, *, scale: float, centres: int) -> None:
        super().__init__(width, num_classes * centres, bias=False)
        self.out_features, self.scale = num_classes, scale

    @property
    def rows(self) -> Tensor:
        """(C x centres, d) rows that an embedding is multiplied by; those of a class are adjacent."""
        return functional.normalize(self.weight) * (self.scale / math.sqrt(self.in_features))

    def forward(self, embedding: Tensor) -> Tensor:
        """(N, C) logits."""
        return nearest(functional.linear(embedding, self.rows), self.out_features)


def angular(rows: Tensor, *, scale: float) -> Angular:
    """Trainable angular classifier with one centre per class, from rows (C, d) of `linear_rows`."""
    classifier = Angular(rows.shape[1], len(rows), scale=scale, centres=1)
    with torch.no_grad():
        classifier.weight.copy_(rows)
    return classifier


def nearest(scores: Tensor, num_classes: int) -> Tensor:
    """Largest score of each class: (N, C x centres) to (N, C); (N, C) is returned as it is."""
    return scores if scores.shape[1] == num_classes else scores.unflatten(1, (num_classes, -1)).amax(2)


def add_margin(logits: Tensor, target: Tensor, *, scale: float, margin_rad: float) -> Tensor:
    """Adds the margin to the angle of the target: logits scale cos(angle) to scale cos(angle + margin), both (N, C).

    Deng et al. 2019, equation 3. If angle + margin exceeds pi, where the cosine rises again, the target's logit becomes
    scale (cos(angle) - margin sin(margin)), as in the authors' code.
    """
    own = logits.gather(1, target[:, None])
    cos = own.to(torch.promote_types(own.dtype, torch.float32)) / scale
    sin = (1 - cos**2).clamp(min=MIN_SIN**2).sqrt()
    moved = cos * math.cos(margin_rad) - sin * math.sin(margin_rad)
    moved = torch.where(cos > -math.cos(margin_rad), moved, cos - margin_rad * math.sin(margin_rad))
    return logits.scatter(1, target[:, None], (scale * moved).to(logits.dtype))


def margin_of(member: Member) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Function that adds a member's margin to logits before the loss; None for a linear head."""
    if member.head == "linear":
        return None
    return partial(add_margin, scale=member.scale, margin_rad=member.margin_rad)
