"""Photos of a pack: posed, lit, blurred, partly hidden, in front of a background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from flows.sample.artwork import Colour, front, mix
from flows.sample.families import Sku, assortment

Corners = NDArray[np.float64]  # (4, 2): top left, top right, bottom right, bottom left, in px

__all__ = ["Difficulty", "draw", "draw_non_product"]


@dataclass(frozen=True)
class Difficulty:
    """Difficulty of recognising the photos; each value is a maximum or a chance, from which every photo is drawn.

    Args:
        tilt_deg: rotation in the picture, in either direction.
        perspective: shift of each corner as a share of the pack's long side.
        light: exposure, side light and colour cast (0 = studio, 0.5 = a cellar with one window).
        blur_px: radius of the Gaussian blur.
        noise: standard deviation of the sensor noise, in grey levels of 255.
        clutter: chance that other packs stand beside and behind the pack.
        occlusion: chance that a finger or a price tag hides a part of the pack.
        band_contrast: 0 to 1; distance of the band's colour from the ground colour, which siblings share.
    """

    tilt_deg: float = 10.0
    perspective: float = 0.07
    light: float = 0.25
    blur_px: float = 1.0
    noise: float = 2.5
    clutter: float = 0.6
    occlusion: float = 0.3
    band_contrast: float = 0.9


def draw(sku: Sku, rng: np.random.Generator, *, difficulty: Difficulty = Difficulty()) -> Image.Image:
    """Photo of the pack: RGB, short side 120 to 180 px, aspect ratio between 3:4 and 4:3.

    The pack covers most of the picture. The same state of `rng` gives the same pixels.
    """
    pack = front(sku, band_contrast=difficulty.band_contrast)
    photo = _background(_frame(pack, rng), rng)
    if rng.random() < difficulty.clutter:
        _add_neighbours(photo, rng, band_contrast=difficulty.band_contrast)
    _add_pack(photo, pack, _pose(photo, pack, rng, difficulty))
    if rng.random() < difficulty.occlusion:
        _add_obstacle(photo, rng)
    return _expose(photo, rng, difficulty)


def draw_non_product(rng: np.random.Generator) -> Image.Image:
    """Picture that shows no product: an empty shelf, a receipt, or a blurred surface close to the camera."""
    size = (int(rng.integers(130, 180)), int(rng.integers(130, 180)))
    photo = _background(size, rng)
    match int(rng.integers(3)):
        case 0:
            _draw_shelf(photo, rng)
        case 1:
            _draw_receipt(photo, rng)
        case _:
            photo = photo.filter(ImageFilter.GaussianBlur(12))
    return _expose(photo, rng, Difficulty())


def _frame(pack: Image.Image, rng: np.random.Generator) -> tuple[int, int]:
    """Width and height of the photo in px; upright packs are mostly photographed upright."""
    aspect = float(np.clip(pack.width / pack.height * rng.uniform(0.9, 1.35), 0.75, 4 / 3))
    short = int(rng.integers(120, 181))
    return (short, round(short / aspect)) if aspect < 1 else (round(short * aspect), short)


def _background(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Background of a wall above a board, in two random muted colours with a soft edge between them."""
    width, height = size
    wall, board = rng.uniform(70, 225, (2, 1)) + rng.uniform(-22, 22, (2, 3))
    edge = height * rng.uniform(0.55, 0.95)
    share = 1 / (1 + np.exp(-(np.arange(height) - edge) / 1.5))[:, None]
    fall = np.linspace(1.08, 0.88, height)[:, None]
    rows = (wall * (1 - share) + board * share) * fall
    pixels = np.broadcast_to(rows[:, None, :], (height, width, 3)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


def _add_neighbours(photo: Image.Image, rng: np.random.Generator, *, band_contrast: float) -> None:
    """Pastes other packs of any brand, cut by the picture's edges and slightly darker than the pack in front."""
    skus = assortment()
    for side in (-1, 1):
        pack = front(skus[int(rng.integers(len(skus)))], band_contrast=band_contrast)
        scale = photo.height * rng.uniform(0.55, 0.8) / pack.height
        pack = pack.resize((round(pack.width * scale), round(pack.height * scale)), Image.Resampling.BILINEAR)
        shade = pack.convert("RGB").point(lambda value: int(value * 0.72))
        x = photo.width // 2 + side * round(photo.width * rng.uniform(0.36, 0.5)) - pack.width // 2
        y = round(photo.height * rng.uniform(0.82, 0.95)) - pack.height
        photo.paste(shade, (x, y), pack.getchannel("A"))


def _pose(photo: Image.Image, pack: Image.Image, rng: np.random.Generator, difficulty: Difficulty) -> Corners:
    """Corners of the pack in the photo: scaled to most of the frame, rotated, seen slightly from the side."""
    half = np.array([pack.width, pack.height]) / 2
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
    corners *= np.min(np.array(photo.size) / 2 / half) * rng.uniform(0.8, 0.98)
    reach = float(np.abs(corners).max()) * 2
    corners += rng.uniform(-1, 1, (4, 2)) * difficulty.perspective * reach
    angle = np.deg2rad(rng.uniform(-1, 1) * difficulty.tilt_deg)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    centre = np.array(photo.size) * (0.5 + rng.uniform(-0.05, 0.05, 2))
    return corners @ turn + centre


def _add_pack(photo: Image.Image, pack: Image.Image, corners: Corners) -> None:
    """Pastes the pack at the corners, over its soft shadow."""
    target = np.array([[0, 0], [pack.width, 0], [pack.width, pack.height], [0, pack.height]], dtype=np.float64)
    placed = pack.transform(
        photo.size, Image.Transform.PERSPECTIVE, _homography(corners, target), Image.Resampling.BILINEAR
    )
    mask = placed.getchannel("A")
    shadow = Image.new("L", photo.size, 0)
    shadow.paste(mask.point(lambda value: value * 5 // 10), (round(photo.width * 0.03), round(photo.height * 0.03)))
    photo.paste((20, 18, 24), (0, 0), shadow.filter(ImageFilter.BoxBlur(5)))
    photo.paste(placed.convert("RGB"), (0, 0), mask)


def _homography(source: Corners, target: Corners) -> list[float]:
    """The 8 coefficients with which Pillow maps source points to target points."""
    rows, values = [], []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
        values += [u, v]
    return [float(value) for value in np.linalg.solve(np.array(rows), np.array(values))]


def _add_obstacle(photo: Image.Image, rng: np.random.Generator) -> None:
    """Draws a fingertip at one side, or a price tag over the bottom."""
    canvas = ImageDraw.Draw(photo)
    width, height = photo.size
    if rng.random() < 0.5:
        skin = mix((236, 188, 160), (120, 76, 54), rng.random())
        x = width * rng.choice([0.04, 0.96])
        y, radius = height * rng.uniform(0.3, 0.85), width * rng.uniform(0.10, 0.17)
        canvas.ellipse((x - radius * 1.7, y - radius * 0.6, x + radius * 1.7, y + radius * 0.6), fill=skin)
        return
    left, top = width * rng.uniform(0.1, 0.5), height * rng.uniform(0.76, 0.86)
    tag: Colour = (250, 240, 120) if rng.random() < 0.5 else (248, 248, 244)
    canvas.rounded_rectangle((left, top, left + width * 0.36, top + height * 0.13), radius=3, fill=tag)
    for share in (0.1, 0.2, 0.26):
        canvas.line(
            (left + width * share, top + 5, left + width * share, top + height * 0.09), fill=(40, 40, 40), width=4
        )


def _expose(photo: Image.Image, rng: np.random.Generator, difficulty: Difficulty) -> Image.Image:
    """Simulates the camera: focus, exposure, side light, colour cast, glare and sensor noise."""
    photo = photo.filter(ImageFilter.GaussianBlur(rng.uniform(0, difficulty.blur_px)))
    width, height = photo.size
    across = np.linspace(-1, 1, width, dtype=np.float32) * rng.uniform(-1, 1)
    down = np.linspace(-1, 1, height, dtype=np.float32) * rng.uniform(-1, 1)
    side = 1 + difficulty.light * 0.5 * (across[None, :] + down[:, None])
    gain = 1 + difficulty.light * (rng.uniform(-1, 0.6) + 0.35 * rng.uniform(-1, 1, 3))
    pixels = np.asarray(photo, dtype=np.float32) * side[..., None] * gain.astype(np.float32)
    pixels += _glare(photo.size, rng)[..., None] * difficulty.light
    pixels += rng.standard_normal((height, width, 1), dtype=np.float32) * rng.uniform(0, difficulty.noise)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _glare(size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """(h, w) grey levels of a soft bright spot at a random position."""
    (x0, y0), spread = rng.uniform(0.1, 0.9, 2), rng.uniform(0.08, 0.25)
    across = np.exp(-(((np.linspace(0, 1, size[0]) - x0) / spread) ** 2))
    down = np.exp(-(((np.linspace(0, 1, size[1]) - y0) / spread) ** 2))
    return (down[:, None] * across[None, :] * rng.uniform(0, 220)).astype(np.float32)


def _draw_shelf(photo: Image.Image, rng: np.random.Generator) -> None:
    """Draws empty boards with their price rails."""
    canvas = ImageDraw.Draw(photo)
    for y in range(int(rng.integers(20, 40)), photo.height, int(rng.integers(38, 56))):
        canvas.rectangle((0, y, photo.width, y + 9), fill=(236, 234, 228))
        canvas.rectangle((0, y + 10, photo.width, y + 14), fill=(70, 66, 64))
        for x in range(int(rng.integers(8, 30)), photo.width, 48):
            canvas.rectangle((x, y + 1, x + 20, y + 8), fill=(250, 222, 90))


def _draw_receipt(photo: Image.Image, rng: np.random.Generator) -> None:
    """Draws a paper slip with lines of print."""
    canvas = ImageDraw.Draw(photo)
    left, right = photo.width * 0.22, photo.width * 0.78
    canvas.rectangle((left, 6, right, photo.height), fill=(247, 246, 240))
    for y in range(18, photo.height - 4, 9):
        canvas.line((left + 8, y, left + rng.uniform(25, 50), y), fill=(90, 90, 96), width=3)
        canvas.line((right - 22, y, right - 8, y), fill=(90, 90, 96), width=3)
