"""Random views of a batch, drawn per photo and computed for the whole batch at once, on whatever device it lies.

One affine grid does zoom, shift, rotation, flip and the resize to the network's size together; torchvision's transforms
draw one set of parameters per call, so a batch would need a Python loop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.config import Augment


def whole_view(photos: Tensor, size: int) -> Tensor:
    """(N, S, S, 3) uint8 -> (N, 3, size, size) in [0, 1]: the whole photo, antialiased. What evaluation sees."""
    pixels = _to_float(photos)
    if pixels.shape[-1] == size:
        return pixels
    return functional.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


@dataclass(frozen=True)
class Draw:
    """What is random in the views of N photos; drawn on the CPU, so that a seed gives the same views on every device."""

    theta: Tensor  # (N, 2, 3) where each output pixel looks in the photo, in units of half its side
    factors: Tensor  # (N, 3) of brightness, contrast and saturation
    extent: Tensor  # (N, 2) of the blank rectangle, as shares of the side; 0 where there is none
    start: Tensor  # (N, 2) its corner

    def __getitem__(self, part: slice) -> Draw:
        return Draw(self.theta[part], self.factors[part], self.extent[part], self.start[part])


def draw_views(n: int, *, augment: Augment, generator: torch.Generator) -> Draw:
    """Draws for a whole batch at once: workers that share a batch draw it all, and each uses its part."""
    theta = _affine(n, augment, generator)
    factors = _uniform(generator, 3, n, low=1 - augment.colour, high=1 + augment.colour).T
    extent = _uniform(generator, n, 2, low=0.1, high=0.4)
    start = torch.rand(n, 2, generator=generator) * (1 - extent)
    extent[torch.rand(n, generator=generator) >= augment.erase] = 0
    return Draw(theta, factors, extent, start)


def random_view(photos: Tensor, size: int, draw: Draw) -> Tensor:
    """(N, S, S, 3) uint8 -> (N, 3, size, size) in [0, 1]: one random view of each photo."""
    grid = functional.affine_grid(draw.theta.to(photos.device), [len(photos), 3, size, size], align_corners=False)
    pixels = functional.grid_sample(_to_float(photos), grid, padding_mode="reflection", align_corners=False)
    return _erase(_colour(pixels, draw), draw)


def _to_float(photos: Tensor) -> Tensor:
    return photos.permute(0, 3, 1, 2).float() / 255


def _uniform(generator: torch.Generator, *shape: int, low: float, high: float) -> Tensor:
    return torch.rand(*shape, generator=generator) * (high - low) + low


def _affine(n: int, augment: Augment, generator: torch.Generator) -> Tensor:
    """(N, 2, 3) zoom, shift, rotation and flip."""
    scale = _uniform(generator, n, low=1 - augment.zoom, high=1)
    stretch = _uniform(generator, n, low=1 - augment.zoom / 3, high=1)
    room = 1 - scale
    shift = _uniform(generator, n, 2, low=-1, high=1) * room[:, None]
    angle = _uniform(generator, n, low=-1, high=1) * math.radians(augment.rotate_deg)
    mirror = torch.ones(n)
    if augment.flip:
        mirror = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = [
        torch.stack([cos * mirror, -sin * stretch, shift[:, 0]], 1),
        torch.stack([sin * mirror, cos * stretch, shift[:, 1]], 1),
    ]
    return torch.stack(rows, 1)


def _colour(pixels: Tensor, draw: Draw) -> Tensor:
    """Brightness, contrast and saturation, each scaled by its own factor per photo."""
    factors = draw.factors.T[..., None, None, None].to(pixels.device)
    pixels = pixels * factors[0]
    mean = pixels.mean((1, 2, 3), keepdim=True)
    pixels = mean + (pixels - mean) * factors[1]
    grey = pixels.mean(1, keepdim=True)
    return (grey + (pixels - grey) * factors[2]).clamp(0, 1)


def _erase(pixels: Tensor, draw: Draw) -> Tensor:
    """One grey rectangle of 10 to 40 % of the side, in a share of the photos (coarse dropout)."""
    size = pixels.shape[-1]
    position = (torch.arange(size) + 0.5) / size
    inside = (position >= draw.start[..., None]) & (position < (draw.start + draw.extent)[..., None])
    hole = (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None].to(pixels.device)
    return torch.where(hole, 0.5, pixels)
