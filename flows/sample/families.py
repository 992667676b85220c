"""Assortment of the sample: 7 invented brands, each with 4 packs that are easily confused.

Packs of a family share brand, shape and ground colour; they differ in a word, a band and sometimes the size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Shape = Literal["carton", "bottle", "box", "wrapper", "can", "bar", "pot"]

__all__ = ["Family", "Shape", "Sku", "assortment"]


@dataclass(frozen=True)
class Family:
    """Properties that all packs of a brand share; colours are "#rrggbb".

    ground: colour of the pack; ink: of its lettering; accent: of the emblem.
    """

    brand: str
    product: str
    shape: Shape
    ground: str
    ink: str
    accent: str


@dataclass(frozen=True)
class Sku:
    """A product. `stretch` is the height of the pack relative to its siblings (1.0 = the usual size)."""

    family: Family
    word: str
    band: str
    size: str
    stretch: float = 1.0

    @property
    def label(self) -> str:
        """Class name as a supplier writes it, such as "Alma Milk Whole 1 l"."""
        return f"{self.family.brand} {self.family.product} {self.word} {self.size}"


_MILK = Family("Alma", "Milk", "carton", ground="#f4f1e6", ink="#1d3f72", accent="#8fbfe0")
_JUICE = Family("Solino", "Juice", "bottle", ground="#f7c948", ink="#2f5d34", accent="#ee8a1d")
_FLAKES = Family("Kornika", "Flakes", "box", ground="#c23b32", ink="#fff3d6", accent="#f2b63c")
_SOAP = Family("Lindea", "Soap", "wrapper", ground="#dcebe3", ink="#35605a", accent="#a9cdbd")
_COLA = Family("Tarn", "Cola", "can", ground="#27313f", ink="#f5f5f0", accent="#c9d2dc")
_CHOCOLATE = Family("Nerina", "Chocolate", "bar", ground="#53306b", ink="#f6e3b4", accent="#d6b25e")
_YOGHURT = Family("Fjella", "Yoghurt", "pot", ground="#e9f2fa", ink="#27527f", accent="#9ec3e6")

_ASSORTMENT = (
    Sku(_MILK, "Whole", "#2b61b4", "1 l"),
    Sku(_MILK, "Light", "#59b3d9", "1 l"),
    Sku(_MILK, "Oat", "#c08a3e", "1 l"),
    Sku(_MILK, "Whole", "#2b61b4", "0.5 l", stretch=0.74),
    Sku(_JUICE, "Orange", "#e8701a", "1 l"),
    Sku(_JUICE, "Apple", "#6fa52e", "1 l"),
    Sku(_JUICE, "Cherry", "#a8203a", "1 l"),
    Sku(_JUICE, "Plum", "#6a3a86", "1 l"),
    Sku(_FLAKES, "Honey", "#eeb02e", "375 g"),
    Sku(_FLAKES, "Cocoa", "#5b3420", "375 g"),
    Sku(_FLAKES, "Berry", "#7a3f95", "375 g"),
    Sku(_FLAKES, "Honey", "#eeb02e", "750 g", stretch=1.3),
    Sku(_SOAP, "Olive", "#7f9140", "100 g"),
    Sku(_SOAP, "Lavender", "#8b74bf", "100 g"),
    Sku(_SOAP, "Rose", "#d77f98", "100 g"),
    Sku(_SOAP, "Lemon", "#e3c93f", "100 g"),
    Sku(_COLA, "Classic", "#c7282f", "330 ml"),
    Sku(_COLA, "Lime", "#63b445", "330 ml"),
    Sku(_COLA, "Vanilla", "#e2bd55", "330 ml"),
    Sku(_COLA, "Zero", "#9aa4af", "330 ml"),
    Sku(_CHOCOLATE, "Milk", "#6fb3d8", "100 g"),
    Sku(_CHOCOLATE, "Dark", "#1f1a1f", "100 g"),
    Sku(_CHOCOLATE, "Nut", "#5f9a4a", "100 g"),
    Sku(_CHOCOLATE, "Milk", "#6fb3d8", "250 g", stretch=1.45),
    Sku(_YOGHURT, "Strawberry", "#d8394f", "150 g"),
    Sku(_YOGHURT, "Blueberry", "#4a57a8", "150 g"),
    Sku(_YOGHURT, "Peach", "#f0995a", "150 g"),
    Sku(_YOGHURT, "Peach", "#f0995a", "500 g", stretch=1.45),
)


def assortment() -> tuple[Sku, ...]:
    """All 28 products, siblings next to each other, four to a family."""
    return _ASSORTMENT
