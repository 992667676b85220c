"""Random views of photos, with parameters drawn per photo and views computed for a whole batch at once, on its device.

A single affine grid applies zoom, shift, rotation, flip and the resize to the network's size. torchvision's transforms
draw one set of parameters per call, so a batch would need a Python loop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.recipe.config import Augment

MAX_BLUR = 0.01  # standard deviation relative to the side: SimCLR's 2 px of 224 (Chen et al., ICML 2020)
HOLE = (0.1, 0.4)  # range of the sides of a single blank rectangle, relative to the view's side


def whole_view(photos: Tensor, size: int) -> Tensor:
    """Whole photos, resized with antialiasing, for evaluation: (N, S, S, 3) uint8 -> (N, 3, size, size) in [0, 1]."""
    pixels = _to_float(photos)
    if pixels.shape[-1] == size:
        return pixels
    return functional.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


@dataclass(frozen=True)
class Draw:
    """Random parameters of the views of N photos. Drawn on the CPU, so that a seed gives the same on every device.

    Whether a batch has any blur or hue is read there, too: on a GPU the host would have to wait for it.
    """

    theta: Tensor  # (N, 2, 3) affine map from output pixels to the photo, in units of half its side
    factors: Tensor  # (N, 3) factors of brightness, contrast and saturation
    hue: Tensor  # (N,) rotation of the hue in radians
    blur: Tensor  # (N,) standard deviation of the blur, relative to the side; 0: no blur
    extent: Tensor  # (N, H, 2) sides of the blank rectangles, relative to the side; 0: none
    start: Tensor  # (N, H, 2) their first corners

    def __getitem__(self, part: slice | Tensor) -> Draw:
        return Draw(*(values[part] for values in vars(self).values()))

    def to(self, device: torch.device) -> Draw:
        """Copy on a device, made in one piece and without waiting."""
        if device.type == "cpu":
            return self
        parts = list(vars(self).values())
        packed = torch.cat([part.flatten(1) if part.ndim > 1 else part[:, None] for part in parts], 1)
        columns = packed.to(device, non_blocking=True).split([part[0].numel() for part in parts], 1)
        return Draw(*(column.reshape(part.shape) for column, part in zip(columns, parts, strict=True)))


def draw_views(n: int, *, augment: Augment, generator: torch.Generator) -> Draw:
    """Parameters for a whole batch of n photos: workers that share a batch all draw it, and each uses its part."""
    theta = _affine(n, augment, generator)
    factors = _uniform(generator, 3, n, low=1 - augment.colour, high=1 + augment.colour).T
    extent = _uniform(generator, n, augment.holes, 2, low=HOLE[0], high=HOLE[1]) / math.sqrt(augment.holes)
    start = torch.rand(n, augment.holes, 2, generator=generator) * (1 - extent)
    extent[torch.rand(n, generator=generator) >= augment.erase] = 0
    hue = _uniform(generator, n, low=-1, high=1) * math.radians(augment.hue_deg)
    blur = _uniform(generator, n, low=0, high=MAX_BLUR)
    blur[torch.rand(n, generator=generator) >= augment.blur] = 0
    return Draw(theta, factors, hue, blur, extent, start)


def random_view(photos: Tensor, size: int, draw: Draw) -> Tensor:
    """One random view of each photo: (N, S, S, 3) uint8 -> (N, 3, size, size) in [0, 1], channels last in memory.

    Args:
        draw: parameters on the CPU; nothing waits for a GPU that holds the photos.
    """
    own = draw.to(photos.device)
    pixels = functional.grid_sample(
        _to_float(photos), _grid(own.theta, size), padding_mode="reflection", align_corners=False
    )
    pixels = _colour(pixels, own.factors)
    if draw.hue.any():
        pixels = torch.einsum("nij,njhw->nihw", _hue_rotations(own.hue), pixels)
    return _erase(_blur(pixels.clamp_(0, 1), own.blur, rows=draw.blur.nonzero()[:, 0]), own)


def _grid(theta: Tensor, size: int) -> Tensor:
    """(N, size, size, 2) points of the photo, as affine_grid gives them, whose matrix product takes ten times as long."""
    at = (torch.arange(size, device=theta.device) * 2 + 1) / size - 1
    across, down, shift = theta[:, None, None].unbind(-1)
    return torch.addcmul(torch.addcmul(shift, down, at[:, None, None]), across, at[:, None])


def _to_float(photos: Tensor) -> Tensor:
    return photos.permute(0, 3, 1, 2).float() / 255


def _uniform(generator: torch.Generator, *shape: int, low: float, high: float) -> Tensor:
    return torch.rand(*shape, generator=generator) * (high - low) + low


def _affine(n: int, augment: Augment, generator: torch.Generator) -> Tensor:
    """(N, 2, 3) affine maps of zoom, shift, rotation and flips."""
    scale = _uniform(generator, n, low=1 - augment.zoom, high=1)
    stretch = _uniform(generator, n, low=1 - augment.zoom / 3, high=1)
    room = 1 - scale
    shift = _uniform(generator, n, 2, low=-1, high=1) * room[:, None]
    angle = _uniform(generator, n, low=-1, high=1) * math.radians(augment.rotate_deg)
    across = _signs(n, generator) if augment.flip else torch.ones(n)
    down = stretch * _signs(n, generator) if augment.flip_vertical else stretch
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = [
        torch.stack([cos * across, -sin * down, shift[:, 0]], 1),
        torch.stack([sin * across, cos * down, shift[:, 1]], 1),
    ]
    return torch.stack(rows, 1)


def _signs(n: int, generator: torch.Generator) -> Tensor:
    """(n,) -1 or 1 with equal probability; -1 mirrors a view."""
    return torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)


def _colour(pixels: Tensor, factors: Tensor) -> Tensor:
    """Scales brightness, contrast and saturation by the factors (N, 3) of each photo."""
    brightness, contrast, saturation = factors.T[..., None, None, None]
    grey = pixels.mean(1, keepdim=True)
    mean, scale = brightness * grey.mean((2, 3), keepdim=True), brightness * contrast
    # One after the other: p b, then m + (p b - m) c with the mean m of the photo, then g + (p - g) s with the grey g of
    # the pixel. All three are linear, so that one pass over the pixels does for the three.
    return torch.addcmul(grey * (scale - scale * saturation) + mean * (1 - contrast), pixels, scale * saturation)


def _hue_rotations(hue: Tensor) -> Tensor:
    """(N, 3, 3) rotations of RGB about the grey axis by angles (N,) in radians; 120 degrees turn red into green."""
    third = 2 * math.pi / 3 * torch.arange(3, device=hue.device)
    shares = (1 + 2 * torch.cos(hue[:, None] - third)) / 3  # of a channel that go to itself, the next and the one after
    of = torch.arange(3, device=hue.device)
    return shares[:, (of[:, None] - of) % 3]


def _blur(pixels: Tensor, blur: Tensor, *, rows: Tensor) -> Tensor:
    """Gaussian blur of the photos `rows`, (n,) on the CPU, each with its own width, as two matrix products."""
    if not len(rows):
        return pixels
    size, rows = pixels.shape[-1], rows.to(pixels.device, non_blocking=True)
    position = torch.arange(size, device=pixels.device)
    offset = position[:, None] - position
    matrix = torch.softmax(-0.5 * (offset / (blur[rows] * size)[:, None, None]) ** 2, 2)[:, None]
    return pixels.index_copy(0, rows, matrix @ pixels[rows] @ matrix.mT)


def _erase(pixels: Tensor, draw: Draw) -> Tensor:
    """Grey rectangles in some photos (coarse dropout): one with sides of 10 to 40 %, or several smaller ones."""
    size = pixels.shape[-1]
    position = (torch.arange(size, device=pixels.device) + 0.5) / size
    inside = (position >= draw.start[..., None]) & (position < (draw.start + draw.extent)[..., None])
    hole = (inside[:, :, 0, :, None] & inside[:, :, 1, None, :]).any(1, keepdim=True)
    view = torch.empty_like(pixels, memory_format=torch.channels_last)
    return torch.where(hole, pixels.new_full((), 0.5), pixels, out=view)
