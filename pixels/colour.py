"""Colours of any kind of picture as 8-bit sRGB: deep samples, transparency, ICC profiles."""

from __future__ import annotations

import io
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
    """8-bit sRGB of an image of any mode: deep samples scaled, the ICC profile applied, transparency as white.

    Raises:
        BadPhoto: the picture comes out as nearly one colour, though its file holds more.
    """
    image = _to_bytes(image, samples or Samples())
    colours, alpha = _apart(image)
    colours = _to_srgb(colours, profile)
    return colours if alpha is None else _on_white(colours, alpha)


def is_nearly_one(image: Image.Image, levels: int = NEARLY_ONE) -> bool:
    """True if every band of the image stays within fewer than `levels` of its 255."""
    extrema = image.getextrema()
    bands = extrema if isinstance(extrema[0], tuple) else (extrema,)
    return all(high - low < levels for low, high in bands)


def scaled(values: NDArray[np.float64], samples: Samples) -> NDArray[np.uint8]:
    """Values of any range as 0 to 255: by the range that the file declares, if they fill it, else by themselves.

    Raises:
        BadPhoto: they are no numbers, or come out as nearly one colour though they are not.
    """
    if not (finite := np.isfinite(values)).all():
        if not finite.any():
            raise BadPhoto("none of its values is a number")
        values = np.where(finite, values, values[finite].min())
    low, high = _range(values, samples)
    levels = np.rint((values - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
    if _top(levels) - _bottom(levels) < NEARLY_ONE and values.min() < values.max():
        raise BadPhoto(
            f"its values, {values.min():g} to {values.max():g}, come out as nearly one colour between {low:g} for black "
            f"and {high:g} for white; save it with 8 bits"
        )
    return 255 - levels if samples.is_inverted else levels


def _range(values: NDArray[np.float64], samples: Samples) -> tuple[float, float]:
    """Values of black and white."""
    lowest, highest = float(values.min()), float(values.max())
    low, high = samples.low or 0.0, samples.high
    if high is not None and low <= lowest and highest <= high and highest - lowest > LEAST_SHARE * (high - low):
        return low, high
    if samples.kind == "float":  # high dynamic range: a few highlights do not darken the rest
        highest = _top(values)
    if lowest < 0:
        return lowest, max(highest, lowest + 1)
    if samples.kind == "float":
        return 0.0, next((white for white in (1, *_whites(BITS)) if highest <= white * OVERSHOOT), highest)
    own = (samples.bits,) if 0 < samples.bits < 16 else ()
    return 0.0, next((white for white in _whites((*own, *BITS)) if highest <= white), highest)


def _top(values: NDArray[Any]) -> float:
    """The value that all but a thousandth of the values do not exceed."""
    return float(np.percentile(values, 99.9, method="higher"))


def _bottom(values: NDArray[Any]) -> float:
    return float(np.percentile(values, 0.1, method="lower"))


def _whites(bits: tuple[int, ...]) -> list[float]:
    return [2.0**each - 1 for each in bits]


def _to_bytes(image: Image.Image, samples: Samples) -> Image.Image:
    """The image with 8 bits a sample."""
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float64)
        if image.mode == "I" and samples.kind == "unsigned":
            values = np.where(values < 0, values + 2.0**32, values)  # Pillow holds 32 bits as signed
        kind = "float" if image.mode == "F" else samples.kind
        return Image.fromarray(
            scaled(values, Samples(samples.bits, kind, samples.low, samples.high, samples.is_inverted))
        )
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


def _on_white(colours: Image.Image, alpha: Image.Image) -> Image.Image:
    rgba = colours.convert("RGB")
    rgba.putalpha(alpha)
    flat = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if is_nearly_one(flat) and not is_nearly_one(colours):
        raise BadPhoto("it is transparent nearly everywhere, and comes out as nearly one colour; save it without alpha")
    return flat


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
