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
    """What a retraining did; model_version is None where the gate refused."""

    run: str
    data_before: str
    data_after: str
    steps: list[StepAccuracy]
    evidence: list[dict[str, Any]]  # why each step stayed or went
    verdict: Verdict
    figures: list[Figure]
    model_version: int | None = None
    promoted: bool = True  # False: it was only registered and staged
    seen: list[SampleAnswer] = field(default_factory=list)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Report:
        """From a run.json."""
        steps, seen = (
            [StepAccuracy(**row) for row in content["steps"]],
            [SampleAnswer(**each) for each in content["seen"]],
        )
        shown = [Figure(**figure) for figure in content.get("figures", ())]
        read = {"steps": steps, "verdict": Verdict.of(content["verdict"]), "figures": shown, "seen": seen}
        return cls(**{**content, **read})


def to_json(content: Any) -> str:
    """As JSON that every reader takes: what could not be measured is null, and not NaN."""
    return json.dumps(_measured(content), indent=1, ensure_ascii=False, default=str)


def _measured(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _measured(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_measured(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content


@dataclass(frozen=True)
class SampleAnswer:
    """What the endpoint said of one test photo, and what it is."""

    photo: str
    truth: str
    label: str
    probability: float
    model_version: int
