"""Photos as JPEGs that every browser and tool shows."""

from __future__ import annotations

import io

from pixels import decode


def as_jpeg(photo: bytes, side: int) -> bytes:
    """A photo of a data version as a JPEG of at most `side` pixels on its longer side.

    Raises:
        BadPhoto: it cannot be decoded.
    """
    image = decode(photo, is_accepted=True, side=side)
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()
