"""What a recogniser says of a photo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from contract import ACCEPTED, OUTPUTS, PADDING


@dataclass(frozen=True)
class Recognition:
    """One photo's answer: (label, probability) best first, and which model said so (version None: a local file).

    score: how sure the model is that the photo shows a product it knows at all, in [0, 1]; known: it reaches ACCEPTED.
    """

    ranked: tuple[tuple[str, float], ...]
    score: float
    model_version: int | None
    data_version: str
    embedding: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)  # (512,)

    @property
    def best(self) -> tuple[str, float] | None:
        """The first of them; None where the graph refused the photo (export.reject)."""
        return self.ranked[0] if self.ranked else None

    @property
    def known(self) -> bool:
        """Whether the model takes the photo for one of its products."""
        return self.score >= ACCEPTED


def outputs(embedding: bool) -> list[str]:
    """The tensors to ask for: most of an answer would be the embedding, so only on wish."""
    return [name for name in OUTPUTS if embedding or name != "embedding"]


def recognitions(
    arrays: Mapping[str, NDArray], *, labels: Sequence[str], model_version: int | None, data_version: str
) -> list[Recognition]:
    """One Recognition for each row of a batch's answer; `labels[id]` names a class."""
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
