"""Contract between an exported graph and the code that serves it. Uses the standard library only.

A graph takes `image` UINT8 (B, size, size, 3) and returns the tensors of OUTPUTS. `models` writes such graphs and
`serving` loads them. The Triton model for encoded photos carries a copy of this file. `CleanShelfError` is defined
here because every other package imports this one, and it imports none of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

INPUT = "image"
OUTPUTS = ("ids", "probs", "known", "embedding")
PADDING = -1  # in `ids`: the graph has fewer than k classes, or rejects the photo
REQUEST_PHOTOS = 8  # a request may hold as many, whatever the model version; one of more photos counts as bulk
LIVE, BULK = 1, 2  # priorities of requests: live ones overtake bulk
ACCEPTED = 0.5  # threshold on `known`: at or above it, the photo counts as showing one of the products


class CleanShelfError(Exception):
    """Base of every error that CleanShelf raises on purpose.

    Each is also a ValueError, which the user can fix (exit code 2), or a RuntimeError, which the environment caused
    (exit code 3); only `GateRefused` is neither (exit code 4).
    """


def encoded_name(model: str) -> str:
    """Name of the Triton model that takes encoded photos (JPEG, PNG, ...) for `model`."""
    return f"{model}-encoded"


def labels_sha256(labels: Sequence[str]) -> str:
    """Hex SHA-256 of the labels in UTF-8, joined by line feeds; a graph's metadata carries it."""
    return hashlib.sha256("\n".join(labels).encode()).hexdigest()
