"""Random views of a batch, drawn per photo and computed for the whole batch at once, on whatever device it lies.

One affine grid does zoom, shift, rotation, flip and the resize to the network's size together; torchvision's transforms
draw one set of parameters per call, so a batch would need a Python loop.
"""

from __future__ import annotations

import math

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


def random_view(photos: Tensor, size: int, *, augment: Augment, generator: torch.Generator) -> Tensor:
    """(N, S, S, 3) uint8 -> (N, 3, size, size) in [0, 1]: one random view of each photo.

    The generator lives on the CPU, so that the same seed gives the same views on every device.
    """
    n = len(photos)
    theta = _affine(n, augment, generator).to(photos.device)
    grid = functional.affine_grid(theta, [n, 3, size, size], align_corners=False)
    pixels = functional.grid_sample(_to_float(photos), grid, padding_mode="reflection", align_corners=False)
    return _erase(_colour(pixels, augment, generator), augment, generator)


def _to_float(photos: Tensor) -> Tensor:
    return photos.permute(0, 3, 1, 2).float() / 255


def _uniform(generator: torch.Generator, *shape: int, low: float, high: float) -> Tensor:
    return torch.rand(*shape, generator=generator) * (high - low) + low


def _affine(n: int, augment: Augment, generator: torch.Generator) -> Tensor:
    """(N, 2, 3): where each output pixel looks in the photo, in units of half its side."""
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


def _colour(pixels: Tensor, augment: Augment, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation, each scaled by its own factor per photo."""
    factors = _uniform(generator, 3, len(pixels), 1, 1, 1, low=1 - augment.colour, high=1 + augment.colour).to(
        pixels.device
    )
    pixels = pixels * factors[0]
    mean = pixels.mean((1, 2, 3), keepdim=True)
    pixels = mean + (pixels - mean) * factors[1]
    grey = pixels.mean(1, keepdim=True)
    return (grey + (pixels - grey) * factors[2]).clamp(0, 1)


def _erase(pixels: Tensor, augment: Augment, generator: torch.Generator) -> Tensor:
    """One grey rectangle of 10 to 40 % of the side, in a share of the photos (coarse dropout)."""
    n, size = len(pixels), pixels.shape[-1]
    extent = _uniform(generator, n, 2, low=0.1, high=0.4)
    start = torch.rand(n, 2, generator=generator) * (1 - extent)
    extent[torch.rand(n, generator=generator) >= augment.erase] = 0
    position = (torch.arange(size) + 0.5) / size
    inside = (position >= start[..., None]) & (position < (start + extent)[..., None])
    hole = (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None].to(pixels.device)
    return torch.where(hole, 0.5, pixels)
