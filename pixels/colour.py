"""Colours of any kind of picture as 8-bit sRGB: deep samples, transparency, ICC profiles."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from pixels.errors import BadPhoto
from pixels.parts import Samples

NEARLY_ONE = 16  # levels of 255; a picture that comes out within fewer shows nothing
LEAST_SHARE = 1 / 16  # of the declared range; values that fill less were not written in it
BITS = (8, 10, 12, 14, 16)  # of cameras and scanners
OVERSHOOT = 1.1  # of floats over their white, as resizing makes
SAME = 2  # levels by which a profile may differ from sRGB and still count as sRGB
PROFILES = 32  # kept at a time; suppliers use few
MODES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # mode -> colour space of a profile for it


def to_rgb(image: Image.Image, profile: bytes = b"", samples: Samples | None = None) -> Image.Image:
    """8-bit sRGB of an image of any mode: deep samples scaled, the ICC profile applied, transparency as white."""
    colours, alpha = _apart(_to_bytes(image, samples or Samples()))
    colours = _to_srgb(colours, profile)
    if alpha is None:
        return colours
    colours.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")


def check_kept(image: Image.Image, rgb: Image.Image) -> None:
    """Refuses an image of which `to_rgb` kept nearly nothing.

    Raises:
        BadPhoto: the RGB picture has nearly one colour, though the image holds more.
    """
    is_deep = _is_deep(image)
    if not (is_deep or image.has_transparency_data) or _spread(rgb) >= NEARLY_ONE:
        return
    if is_deep:
        values = np.asarray(image)
        if values.min() != values.max():
            between = f"its values, {values.min():g} to {values.max():g}, come out as nearly one colour"
            raise BadPhoto(f"{between}; save it with 8 bits")
    elif _spread(image.convert("RGBA").convert("RGB")) >= NEARLY_ONE:
        raise BadPhoto("it is transparent nearly everywhere, and comes out as nearly one colour; save it without alpha")


def scaled(values: NDArray[np.float64], samples: Samples) -> NDArray[np.uint8]:
    """Values of any range as 0 to 255: by the range that the file declares, if they fill it, else by themselves."""
    if not (finite := np.isfinite(values)).all():
        values = np.where(finite, values, values[finite].min(initial=np.inf) if finite.any() else 0.0)
    low, high = _range(values, samples)
    levels = np.rint((values - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
    return 255 - levels if samples.is_inverted else levels


def is_srgb(profile: bytes, mode: str) -> bool:
    """True if `to_rgb` ignores this profile of an image of this mode: it gives the same colours, or is none or broken."""
    return not profile or _transform(profile, mode) is None


def _is_deep(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _spread(image: Image.Image) -> int:
    """Levels that all but a thousandth of the values at either end lie within, of the band in which they are most."""
    counts = np.array(image.histogram()).reshape(-1, 256)
    few = counts[0].sum() / 1000
    inner = (counts.cumsum(axis=1) > few) & (counts[:, ::-1].cumsum(axis=1)[:, ::-1] > few)
    return int((inner.sum(axis=1) - 1).max())


def _range(values: NDArray[np.float64], samples: Samples) -> tuple[float, float]:
    """Values of black and white."""
    lowest, highest = float(values.min()), float(values.max())
    low, high = samples.low or 0.0, samples.high
    if high is not None and _is_filled(low, high, lowest, highest):
        return low, high
    if samples.kind == "float":
        return _range_of_floats(lowest, _top(values))  # high dynamic range: a few highlights do not darken the rest
    bits = samples.bits - (samples.kind == "signed")  # of a value without its sign
    if lowest < 0:
        low, high = -(2.0**bits), 2.0**bits - 1
        return (low, high) if _is_filled(low, high, lowest, highest) else (lowest, max(highest, lowest + 1))
    whites = _whites(sorted({*BITS, bits}) if samples.bits >= 16 else (bits, *BITS))
    white = next((white for white in whites if highest <= white), highest)
    return 0.0, white if white <= 65535 or _is_filled(0, white, 0, highest) else highest


def _range_of_floats(lowest: float, highest: float) -> tuple[float, float]:
    """Values of black and white; those slightly below zero count as black."""
    if lowest >= min(0, (1 - OVERSHOOT) * highest):
        return 0.0, next((white for white in (1, *_whites(BITS)) if highest <= white * OVERSHOOT), highest)
    if _is_filled(-OVERSHOOT, OVERSHOOT, lowest, highest):
        return -1.0, 1.0
    return lowest, max(highest, lowest + 1)


def _is_filled(low: float, high: float, lowest: float, highest: float) -> bool:
    """True if the values lie in the range from low to high and fill more than LEAST_SHARE of it."""
    return low <= lowest and highest <= high and highest - lowest > LEAST_SHARE * (high - low)


def _top(values: NDArray[Any]) -> float:
    """The value that all but a thousandth of them do not exceed."""
    return float(np.percentile(values, 99.9, method="higher"))


def _whites(bits: Iterable[int]) -> list[float]:
    return [2.0**each - 1 for each in bits if each > 0]


def _to_bytes(image: Image.Image, samples: Samples) -> Image.Image:
    """The image with 8 bits a sample."""
    if _is_deep(image):
        values = np.asarray(image, dtype=np.float64)
        if image.mode == "I" and samples.kind == "unsigned":
            values = np.where(values < 0, values + 2.0**32, values)  # Pillow holds 32 bits as signed
        samples = replace(samples, kind="float") if image.mode == "F" else samples
        return Image.fromarray(scaled(values, samples))
    if image.mode == "L" and samples.kind == "signed":
        return Image.fromarray(scaled(np.asarray(image).view(np.int8).astype(np.float64), samples))
    if samples.is_inverted:
        return Image.fromarray(255 - np.asarray(image.convert("L")))
    return image


def _apart(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colours and alpha of an image; None if all of it is opaque, or all transparent, as writers that forget alpha leave it."""
    if not image.has_transparency_data:
        return image, None
    rgba = image.convert("RGBA")
    alpha = rgba.getchannel("A")
    colours = image.convert("L") if image.mode == "LA" else rgba.convert("RGB")
    return colours, None if alpha.getextrema() == (0, 0) else alpha


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """RGB of an image of any mode without alpha; a profile that is broken or of another colour space is ignored."""
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode not in (*MODES, "LAB"):
        image = image.convert("RGB")
    transform = _transform(profile, image.mode) if profile or image.mode == "LAB" else None
    if transform:
        return transform.apply(image)
    return image if image.mode == "RGB" else image.convert("RGB")


@lru_cache(PROFILES)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Transform from the profile to sRGB; None if it is broken or of another mode, or gives the same colours anyway."""
    try:
        if mode == "LAB":
            source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        else:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if source.profile.xcolor_space.strip() != MODES[mode]:
                return None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if mode == "RGB":
        steps = np.arange(0, 256, 17, dtype=np.uint8)
        colours = Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(16, -1, 3))
    elif mode == "L":
        colours = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    else:
        return transform
    apart = np.abs(np.asarray(transform.apply(colours)).astype(int) - np.asarray(colours.convert("RGB")))
    return transform if apart.max() > SAME else None
