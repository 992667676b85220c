"""Answer of a recogniser to one photo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract import ACCEPTED, OUTPUTS, PADDING


@dataclass(frozen=True)
class Recognition:
    """Answer to one photo.

    Args:
        ranked: (label, probability), best first.
        score: how probably the photo shows a product of the assortment, in [0, 1]; the tensor `known`.
        model_version: the version that answered; None for a local file.
        data_version: the data version on which that model was trained.
    """

    ranked: tuple[tuple[str, float], ...]
    score: float
    model_version: int | None
    data_version: str
    embedding: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)  # (512,)

    @property
    def best(self) -> tuple[str, float] | None:
        """First label with its probability; None if the graph rejected the photo (export.reject)."""
        return self.ranked[0] if self.ranked else None

    @property
    def known(self) -> bool:
        """True if the score reaches ACCEPTED: the photo counts as showing one of the products."""
        return self.score >= ACCEPTED


def outputs(embedding: bool) -> list[str]:
    """Names of the tensors to request; the embedding, the largest part of an answer, only if asked for."""
    return [name for name in OUTPUTS if embedding or name != "embedding"]


def recognitions(
    arrays: Mapping[str, NDArray[Any]], *, labels: Sequence[str], model_version: int | None, data_version: str
) -> list[Recognition]:
    """One Recognition for each row of a batch's output tensors; `labels[id]` is the name of a class."""
    vectors = arrays.get("embedding", [None] * len(arrays["ids"]))
    return [
        Recognition(
            tuple((labels[i], float(p)) for i, p in zip(ids, probs, strict=True) if i != PADDING),
            float(known[0]),
            model_version,
            data_version,
            vector,
        )
        for ids, probs, known, vector in zip(arrays["ids"], arrays["probs"], arrays["known"], vectors, strict=True)
    ]
