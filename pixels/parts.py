"""Parts of a photo's file: the bytes that make its pixels, and the few metadata that change them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Samples:
    """Declaration of a file about its sample values; 0, "" and None where it says nothing.

    bits: significant bits of a sample. kind: "unsigned", "signed" or "float". low, high: values of black and white.
    is_inverted: the lowest value is white.
    """

    bits: int = 0
    kind: str = ""
    low: float | None = None
    high: float | None = None
    is_inverted: bool = False


@dataclass(frozen=True)
class Parts:
    """A file without the metadata that cannot change its pixels, so that a fault in these does not refuse the photo.

    data: a file of the same kind. orientation: EXIF's, 1 to 8. profile: ICC profile, b"" if there is none.
    """

    data: bytes
    orientation: int = 1
    profile: bytes = b""
    samples: Samples = field(default_factory=Samples)
