"""What a photo looks like in a few bytes: enough to know it again after another encoding or size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 6
BYTES = 3 * SIDE * SIDE


def look(image: Image.Image) -> NDArray[np.uint8]:
    """(BYTES,) mean colours of SIDE x SIDE equal parts of an RGB photo, 0 to 255.

    Colours, and not only where it gets brighter, as in a difference hash: packshots on white differ in little else.
    """
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=12)  # large photos by whole pixels first
    return np.asarray(small, dtype=np.uint8).reshape(-1)
