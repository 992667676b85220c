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

from models.recipe.config import Augment

LARGEST_BLUR = 0.01  # standard deviation, as a share of the side: SimCLR's 2 px of 224 (Chen et al., ICML 2020)
HOLE = (0.1, 0.4)  # sides of a blank rectangle that is alone, as shares of the view's


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
    hue: Tensor  # (N,) radians that colours are turned by
    blur: Tensor  # (N,) standard deviation of the blur, as a share of the side; 0 where there is none
    extent: Tensor  # (N, H, 2) of the blank rectangles, as shares of the side; 0 where there are none
    start: Tensor  # (N, H, 2) their corners

    def __getitem__(self, part: slice | Tensor) -> Draw:
        return Draw(*(values[part] for values in vars(self).values()))


def draw_views(n: int, *, augment: Augment, generator: torch.Generator) -> Draw:
    """Draws for a whole batch at once: workers that share a batch draw it all, and each uses its part."""
    theta = _affine(n, augment, generator)
    factors = _uniform(generator, 3, n, low=1 - augment.colour, high=1 + augment.colour).T
    extent = _uniform(generator, n, augment.holes, 2, low=HOLE[0], high=HOLE[1]) / math.sqrt(augment.holes)
    start = torch.rand(n, augment.holes, 2, generator=generator) * (1 - extent)
    extent[torch.rand(n, generator=generator) >= augment.erase] = 0
    hue = _uniform(generator, n, low=-1, high=1) * math.radians(augment.hue_deg)
    blur = _uniform(generator, n, low=0, high=LARGEST_BLUR)
    blur[torch.rand(n, generator=generator) >= augment.blur] = 0
    return Draw(theta, factors, hue, blur, extent, start)


def random_view(photos: Tensor, size: int, draw: Draw) -> Tensor:
    """(N, S, S, 3) uint8 -> (N, 3, size, size) in [0, 1]: one random view of each photo."""
    grid = functional.affine_grid(draw.theta.to(photos.device), [len(photos), 3, size, size], align_corners=False)
    pixels = functional.grid_sample(_to_float(photos), grid, padding_mode="reflection", align_corners=False)
    return _erase(_blur(_colour(pixels, draw), draw), draw)


def _to_float(photos: Tensor) -> Tensor:
    return photos.permute(0, 3, 1, 2).float() / 255


def _uniform(generator: torch.Generator, *shape: int, low: float, high: float) -> Tensor:
    return torch.rand(*shape, generator=generator) * (high - low) + low


def _affine(n: int, augment: Augment, generator: torch.Generator) -> Tensor:
    """(N, 2, 3) zoom, shift, rotation and flips."""
    scale = _uniform(generator, n, low=1 - augment.zoom, high=1)
    stretch = _uniform(generator, n, low=1 - augment.zoom / 3, high=1)
    room = 1 - scale
    shift = _uniform(generator, n, 2, low=-1, high=1) * room[:, None]
    angle = _uniform(generator, n, low=-1, high=1) * math.radians(augment.rotate_deg)
    across = _mirrored(n, generator) if augment.flip else torch.ones(n)
    down = stretch * _mirrored(n, generator) if augment.flip_vertical else stretch
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = [
        torch.stack([cos * across, -sin * down, shift[:, 0]], 1),
        torch.stack([sin * across, cos * down, shift[:, 1]], 1),
    ]
    return torch.stack(rows, 1)


def _mirrored(n: int, generator: torch.Generator) -> Tensor:
    """(n,) -1 for half of the views, 1 for the others."""
    return torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)


def _colour(pixels: Tensor, draw: Draw) -> Tensor:
    """Brightness, contrast and saturation, each scaled by its own factor per photo; then the hue is turned."""
    factors = draw.factors.T[..., None, None, None].to(pixels.device)
    pixels = pixels * factors[0]
    mean = pixels.mean((1, 2, 3), keepdim=True)
    pixels = mean + (pixels - mean) * factors[1]
    grey = pixels.mean(1, keepdim=True)
    pixels = grey + (pixels - grey) * factors[2]
    if draw.hue.any():
        pixels = torch.einsum("nij,njhw->nihw", _turns(draw.hue).to(pixels.device), pixels)
    return pixels.clamp(0, 1)


def _turns(hue: Tensor) -> Tensor:
    """(N,) radians -> (N, 3, 3) rotations of RGB about the axis of greys, which stay; 120 degrees make red green."""
    third = 2 * math.pi / 3 * torch.arange(3)
    shares = (1 + 2 * torch.cos(hue[:, None] - third)) / 3  # of a channel in itself, the next and the one after
    to, of = torch.arange(3)[:, None], torch.arange(3)
    return shares[:, (to - of) % 3]


def _blur(pixels: Tensor, draw: Draw) -> Tensor:
    """Gaussian blur of the photos that drew one: two matrix products, each photo by its own width."""
    rows = draw.blur.nonzero()[:, 0]
    if not len(rows):
        return pixels
    size = pixels.shape[-1]
    offset = torch.arange(size)[:, None] - torch.arange(size)
    matrix = torch.softmax(-0.5 * (offset / (draw.blur[rows] * size)[:, None, None]) ** 2, 2).to(pixels.device)[:, None]
    rows = rows.to(pixels.device)
    return pixels.index_copy(0, rows, matrix @ pixels[rows] @ matrix.mT)


def _erase(pixels: Tensor, draw: Draw) -> Tensor:
    """Grey rectangles in a share of the photos (coarse dropout): one of 10 to 40 % of the side, or more and smaller ones."""
    size = pixels.shape[-1]
    position = (torch.arange(size) + 0.5) / size
    inside = (position >= draw.start[..., None]) & (position < (draw.start + draw.extent)[..., None])
    hole = (inside[:, :, 0, :, None] & inside[:, :, 1, None, :]).any(1, keepdim=True).to(pixels.device)
    return torch.where(hole, 0.5, pixels)
