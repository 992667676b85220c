"""The report of a retraining, as run.json keeps it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flows.gate.verdict import Verdict
from flows.report.figures import Figure
from flows.report.steps import StepAccuracy

# Label and probability if a graph with export.reject takes a photo for none of the products.
NO_PRODUCT = ("", 0.0)


@dataclass(frozen=True)
class Report:
    """The report of a retraining. model_version is None if the gate refused, or before the model is registered.

    data_before, data_after: the data versions as delivered, and that the model learnt from.
    cleaned: the version that cleaning made, also if the evidence dropped it.
    look_at: photos that explain a refusal, one per row.
    selection: the reason why a published model's data version is not selected; "" if it is.
    """

    run: str
    data_before: str
    data_after: str
    steps: list[StepAccuracy]
    evidence: list[dict[str, Any]]  # why each step was kept or dropped
    verdict: Verdict
    figures: list[Figure]
    model_version: int | None = None
    promoted: bool = True  # False: it was only registered
    seen: list[SampleAnswer] = field(default_factory=list)
    cleaned: str = ""
    look_at: list[dict[str, Any]] = field(default_factory=list)
    selection: str = ""

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Report:
        """Reads a report from the content of run.json."""
        read = {
            "steps": [StepAccuracy(**row) for row in content["steps"]],
            "verdict": Verdict.of(content["verdict"]),
            "figures": [Figure(**figure) for figure in content.get("figures", ())],
            "seen": [SampleAnswer(**answer) for answer in content["seen"]],
        }
        return cls(**{**content, **read})


def to_json(content: Any) -> str:
    """JSON that every reader accepts: NaN becomes null."""
    return json.dumps(_without_nan(content), indent=1, ensure_ascii=False, default=str)


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content


@dataclass(frozen=True)
class SampleAnswer:
    """The answer of the endpoint to one test photo, and the true label."""

    photo: str
    truth: str
    label: str
    probability: float
    model_version: int
