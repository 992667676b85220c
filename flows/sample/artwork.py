"""Artwork of the packs: flat drawings of their fronts with an outline, from which photos are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from flows.sample.families import Shape, Sku

Colour = tuple[int, int, int]
_OVERSAMPLING = 2  # drawn larger, then reduced, for smooth edges and letters

__all__ = ["Colour", "front", "mix"]


@dataclass(frozen=True)
class _Layout:
    """Positions of the elements of a pack: its size in px, everything else in fractions of it."""

    size: tuple[int, int]
    brand: tuple[float, float, float]  # x, y, letter height
    band: tuple[float, float, float, float]  # x0, y0, x1, y1
    slant: float  # rise of the band's right end over its left end
    weight: tuple[float, float]  # x, y of the text of the size
    emblem: tuple[float, float, float]  # x, y, radius
    room: float  # maximum width of the brand's lettering
    relief: Literal["box", "round", "flat"]  # a box has a shaded side, a round pack is a cylinder


_LAYOUTS: dict[Shape, _Layout] = {
    "carton": _Layout(
        (120, 200), (0.43, 0.33, 0.13), (0, 0.64, 1, 0.83), 0.05, (0.43, 0.92), (0.43, 0.53, 0.08), 0.74, "box"
    ),
    "bottle": _Layout(
        (112, 200), (0.5, 0.40, 0.11), (0, 0.64, 1, 0.81), 0.0, (0.5, 0.885), (0.5, 0.56, 0.06), 0.74, "round"
    ),
    "box": _Layout(
        (140, 176), (0.44, 0.15, 0.14), (0, 0.61, 1, 0.81), 0.08, (0.44, 0.915), (0.44, 0.42, 0.14), 0.74, "box"
    ),
    "wrapper": _Layout(
        (200, 128), (0.38, 0.25, 0.24), (0, 0.54, 1, 0.83), 0.0, (0.82, 0.92), (0.80, 0.29, 0.26), 0.5, "flat"
    ),
    "can": _Layout(
        (112, 196), (0.5, 0.21, 0.15), (0, 0.51, 1, 0.73), 0.12, (0.5, 0.86), (0.5, 0.42, 0.06), 0.74, "round"
    ),
    "bar": _Layout(
        (200, 104), (0.52, 0.23, 0.26), (0, 0.52, 1, 0.82), 0.10, (0.82, 0.91), (0.17, 0.27, 0.22), 0.5, "flat"
    ),
    "pot": _Layout(
        (168, 132), (0.5, 0.28, 0.19), (0, 0.52, 1, 0.78), 0.0, (0.5, 0.88), (0.82, 0.36, 0.10), 0.74, "round"
    ),
}


@dataclass(frozen=True)
class _Canvas:
    """A drawing surface addressed in fractions of its width and height."""

    draw: ImageDraw.ImageDraw
    width: int
    height: int

    def at(self, *xy: float) -> list[float]:
        """Pixels of the fractions x0, y0, x1, y1, ..."""
        return [value * (self.height if i % 2 else self.width) for i, value in enumerate(xy)]

    def box(self, *xy: float, fill: Colour | int, radius: float = 0.0) -> None:
        """Draws a filled rectangle x0, y0, x1, y1; the corner radius is a fraction of the width."""
        self.draw.rounded_rectangle(self.at(*xy), radius=radius * self.width, fill=fill)

    def polygon(self, *xy: float, fill: Colour | int) -> None:
        """Draws a filled polygon x0, y0, x1, y1, ..."""
        self.draw.polygon(self.at(*xy), fill=fill)

    def disc(self, x: float, y: float, radius_px: float, fill: Colour | int) -> None:
        """Draws a filled circle around (x, y)."""
        self.draw.circle(self.at(x, y), radius_px, fill=fill)

    def text(self, x: float, y: float, text: str, *, height_px: float, fill: Colour, room: float) -> None:
        """Draws letters centred on (x, y), reduced to fit into `room` (a fraction of the width)."""
        width = _font(100).getlength(text) / 100
        size = int(min(height_px, room * self.width / width))
        centre = (x * self.width, y * self.height)
        self.draw.text(centre, text, fill=fill, font=_font(size), anchor="mm", stroke_width=size // 40)


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """Mixture of `share` (0 to 1) of `other` and the rest of `one`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


@lru_cache(maxsize=128)
def front(sku: Sku, *, band_contrast: float) -> Image.Image:
    """Front of a pack: RGBA, about 200 px on its long side, transparent outside its outline.

    band_contrast (0 to 1): distance of the band's colour from the ground colour, which all siblings share.
    """
    layout = _LAYOUTS[sku.family.shape]
    size = (layout.size[0] * _OVERSAMPLING, round(layout.size[1] * sku.stretch) * _OVERSAMPLING)
    ground = _rgb(sku.family.ground)
    band = mix(ground, _rgb(sku.band), band_contrast)
    art = Image.new("RGB", size, ground)
    canvas = _Canvas(ImageDraw.Draw(art), *size)
    _paint_ground(canvas, ground)
    _paint_emblem(canvas, layout, _rgb(sku.family.accent))
    _paint_band(canvas, layout, band, sku.word)
    _paint_lettering(canvas, layout, sku)
    _FINISHES[sku.family.shape](canvas, band)
    art = Image.fromarray((np.asarray(art) * _shading(size[0], layout.relief)).clip(0, 255).astype(np.uint8))
    art.putalpha(_outline(sku.family.shape, size))
    return art.reduce(_OVERSAMPLING)


def _paint_ground(canvas: _Canvas, ground: Colour) -> None:
    """Paints the ground colour, slightly lighter at the top and darker at the bottom."""
    for y in range(canvas.height):
        height = y / canvas.height - 0.45
        shade = mix(ground, (255, 255, 255) if height < 0 else (0, 0, 0), abs(height) * 0.35)
        canvas.draw.line((0, y, canvas.width, y), fill=shade)


def _paint_emblem(canvas: _Canvas, layout: _Layout, accent: Colour) -> None:
    """Paints a flower of six petals, the same on every pack of the family."""
    x, y, radius = layout.emblem
    petal = radius * min(canvas.height, layout.size[1] * _OVERSAMPLING) / 2
    for angle in np.arange(6) * np.pi / 3:
        dx, dy = np.cos(angle) * petal / canvas.width, np.sin(angle) * petal / canvas.height
        canvas.disc(x + dx, y + dy, petal * 0.62, accent)
    canvas.disc(x, y, petal * 0.55, mix(accent, (255, 255, 255), 0.65))


def _paint_band(canvas: _Canvas, layout: _Layout, band: Colour, word: str) -> None:
    """Paints the band, its thin borders and the word on it."""
    x0, y0, x1, y1 = layout.band
    rise = layout.slant / 2
    for grow, fill in ((0.022, mix(band, (255, 255, 255), 0.75)), (0.0, band)):
        top, foot = y0 - grow, y1 + grow
        canvas.polygon(x0, top + rise, x1, top - rise, x1, foot - rise, x0, foot + rise, fill=fill)
    ink: Colour = (255, 255, 255) if _luminance(band) < 165 else (40, 32, 28)
    height = (y1 - y0) * canvas.height * 0.72
    canvas.text(layout.brand[0], (y0 + y1) / 2, word, height_px=height, fill=ink, room=0.74)


def _paint_lettering(canvas: _Canvas, layout: _Layout, sku: Sku) -> None:
    """Paints brand, product and size in the family's ink."""
    ink = _rgb(sku.family.ink)
    x, y, height = layout.brand
    unit = min(canvas.height, layout.size[1] * _OVERSAMPLING)  # a larger pack has the same lettering
    canvas.text(x, y, sku.family.brand, height_px=height * unit * 1.15, fill=ink, room=layout.room)
    canvas.text(x, y + height * 0.8, sku.family.product, height_px=height * unit * 0.55, fill=ink, room=0.6)
    canvas.text(*layout.weight, sku.size, height_px=0.1 * unit, fill=ink, room=0.5)


def _finish_carton(canvas: _Canvas, band: Colour) -> None:
    """Paints the gable: a lighter slope, the fold, and a cap in the band's colour."""
    canvas.box(0, 0, 1, 0.075, fill=(222, 222, 216))
    canvas.polygon(0.0, 0.235, 1.0, 0.235, 1.0, 0.228, 0.0, 0.228, fill=(190, 192, 190))
    canvas.disc(0.46, 0.155, 0.12 * canvas.width, mix(band, (0, 0, 0), 0.25))
    canvas.disc(0.46, 0.148, 0.11 * canvas.width, band)


def _finish_bottle(canvas: _Canvas, band: Colour) -> None:
    """Paints a screw cap in the band's colour."""
    canvas.box(0.3, 0, 0.7, 0.085, fill=band)
    for x in np.linspace(0.34, 0.66, 6):
        canvas.box(x, 0.01, x + 0.015, 0.08, fill=mix(band, (0, 0, 0), 0.25))


def _finish_box(canvas: _Canvas, band: Colour) -> None:
    """Paints a top edge in the band's colour."""
    canvas.box(0, 0, 1, 0.03, fill=band)


def _finish_wrapper(canvas: _Canvas, band: Colour) -> None:
    """Paints pleats at both ends."""
    for x in (0.0, 0.95):
        canvas.box(x, 0, x + 0.05, 1, fill=mix(band, (255, 255, 255), 0.35))
    for x in (0.05, 0.945):
        canvas.box(x, 0, x + 0.005, 1, fill=(150, 165, 160))


def _finish_can(canvas: _Canvas, band: Colour) -> None:
    """Paints metal rims at the top and bottom, and a ring in the band's colour."""
    for y0, y1 in ((0.0, 0.055), (0.955, 1.0)):
        canvas.box(0, y0, 1, y1, fill=(196, 202, 208))
        canvas.box(0, y0 + 0.018, 1, y0 + 0.028, fill=(235, 238, 240))
    canvas.box(0, 0.055, 1, 0.085, fill=band)


def _finish_bar(canvas: _Canvas, band: Colour) -> None:
    """Paints crimped gold foil at both ends, edged in the band's colour."""
    for x in np.linspace(0, 0.055, 5):
        for left in (x, 0.985 - x):
            canvas.box(left, 0, left + 0.007, 1, fill=(214, 184, 104))
            canvas.box(left + 0.007, 0, left + 0.015, 1, fill=(160, 128, 60))
    for x in (0.07, 0.915):
        canvas.box(x, 0, x + 0.015, 1, fill=band)


def _finish_pot(canvas: _Canvas, band: Colour) -> None:
    """Paints a foil lid in the band's colour, and its rim."""
    canvas.box(0, 0, 1, 0.10, fill=mix(band, (255, 255, 255), 0.15))
    canvas.box(0, 0.10, 1, 0.145, fill=(232, 236, 240))


_FINISHES: dict[Shape, Callable[[_Canvas, Colour], None]] = {
    "carton": _finish_carton,
    "bottle": _finish_bottle,
    "box": _finish_box,
    "wrapper": _finish_wrapper,
    "can": _finish_can,
    "bar": _finish_bar,
    "pot": _finish_pot,
}


def _outline(shape: Shape, size: tuple[int, int]) -> Image.Image:
    """Silhouette of a pack as a mask of mode L."""
    mask = Image.new("L", size, 0)
    canvas = _Canvas(ImageDraw.Draw(mask), *size)
    match shape:
        case "carton":
            canvas.box(0.16, 0, 0.84, 0.09, fill=255, radius=0.02)
            canvas.polygon(0.18, 0.07, 0.82, 0.07, 1, 0.23, 0, 0.23, fill=255)
            canvas.box(0, 0.225, 0.999, 0.999, fill=255, radius=0.025)
        case "bottle":
            canvas.box(0.3, 0, 0.7, 0.088, fill=255, radius=0.04)
            canvas.box(0.36, 0.05, 0.64, 0.2, fill=255)
            canvas.polygon(0.36, 0.12, 0.64, 0.12, 0.9, 0.26, 1, 0.36, 0, 0.36, 0.1, 0.26, fill=255)
            canvas.box(0, 0.33, 0.999, 0.999, fill=255, radius=0.1)
        case "can":
            canvas.box(0.07, 0, 0.93, 0.2, fill=255, radius=0.05)
            canvas.polygon(0.07, 0.04, 0.93, 0.04, 1, 0.1, 1, 0.92, 0.93, 0.97, 0.07, 0.97, 0, 0.92, 0, 0.1, fill=255)
            canvas.box(0.06, 0.9, 0.94, 0.999, fill=255, radius=0.05)
        case "pot":
            canvas.polygon(0.03, 0.08, 0.97, 0.08, 0.85, 0.97, 0.15, 0.97, fill=255)
            canvas.box(0.15, 0.9, 0.85, 0.999, fill=255, radius=0.04)
            canvas.box(0, 0, 0.999, 0.145, fill=255, radius=0.025)
        case _:
            canvas.box(0, 0, 0.999, 0.999, fill=255, radius=0.05 if shape == "wrapper" else 0.02)
    return mask


def _shading(width: int, relief: Literal["box", "round", "flat"]) -> NDArray[np.float64]:
    """Brightness factors (1, width, 1) from left to right."""
    x = np.linspace(0, 1, width)
    match relief:
        case "round":
            profile = 0.62 + 0.42 * np.sqrt(4 * x * (1 - x)) + 0.16 * np.exp(-(((x - 0.27) / 0.07) ** 2))
        case "box":
            profile = np.where(x < 0.87, 1.03 - 0.06 * x, 0.74)
        case "flat":
            profile = 1.02 - 0.12 * np.abs(2 * x - 0.8) ** 3
    return profile[None, :, None]


def _luminance(colour: Colour) -> float:
    """Perceived brightness, 0 to 255."""
    red, green, blue = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _rgb(name: str) -> Colour:
    """Three numbers, 0 to 255, for a colour "#rrggbb"."""
    red, green, blue = ImageColor.getrgb(name)[:3]
    return red, green, blue


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's embedded font, which needs no file."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # without FreeType, Pillow has only a bitmap font
    return font
