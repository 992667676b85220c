"""Changes against the current model, on the same test photos, and against the last run."""

from __future__ import annotations

from typing import Any

import numpy as np

from flows.gate.gates import Hits
from flows.report.figures import SHOWN, Figure
from flows.report.run_report import Report
from flows.report.steps import StepAccuracy
from models.data.manifest import SPLITS, Manifest

LAST, THIS = "last run", "this run"


def changed_products(hits: Hits, against: str) -> list[Figure]:
    """Products by what became of their accuracy, and those that fell; none without a current model.

    against: the name of the current model.
    """
    if hits.serving is None:
        return []
    photos, before, after = (
        np.bincount(hits.target[mask], minlength=len(hits.labels)) for mask in (slice(None), hits.serving, hits.new)
    )
    change = np.sign(after - before)[photos > 0]
    numbers = [
        {"products": name, "number": int((change == sign).sum())}
        for name, sign in (("better", 1), ("the same", 0), ("worse", -1))
    ]
    share = (before - after) / np.maximum(photos, 1)
    order = np.lexsort((-share, after - before))[:SHOWN]
    fallen = [
        {
            "product": str(hits.labels[i]),
            "test photos": int(photos[i]),
            "before": float(before[i] / photos[i]),
            "after": float(after[i] / photos[i]),
            "example": hits.photo[np.argmax((hits.target == i) & hits.serving & ~hits.new)],
        }
        for i in order.tolist()
        if after[i] < before[i]
    ]
    return [
        Figure(f"Products compared with {against}", numbers, ("number",), "changes"),
        Figure(f"Products that fell compared with {against}", fallen, name="fallen"),
    ]


def against_last_run(manifest: Manifest, step: StepAccuracy, issues: int, last: Report | None) -> Figure:
    """The size of the data and the accuracy of a run beside those of the last one; None where that is unknown.

    Args:
        manifest: the data version that the model learnt from.
        step: accuracy of the graph.
        issues: number of label issues that cleaning flagged.
    """
    counts = {f"{split} photos": int((manifest.kept & (manifest.split == split)).sum()) for split in SPLITS}
    now: dict[str, Any] = {"products": len(manifest.classes), **counts, "label issues": issues, **_accuracies(step)}
    then = _of(last)
    rows = [{"measure": name, LAST: then.get(name), THIS: value} for name, value in now.items()]
    return Figure(f"This run and the last one{f', {last.run}' if last else ''}", rows, name="last run")


def _of(report: Report | None) -> dict[str, Any]:
    """The numbers of a run by their names; of a run of an earlier release only the accuracies."""
    if report is None:
        return {}
    told = next((figure.rows for figure in report.figures if figure.name == "last run"), [])
    final = report.steps[-1] if report.steps else StepAccuracy("", *[None] * 5)
    return _accuracies(final) | {row["measure"]: row[THIS] for row in told}


def _accuracies(step: StepAccuracy) -> dict[str, float | None]:
    thirds = {f"accuracy, {name}": getattr(step, name) for name in ("head", "middle", "tail")}
    return {"accuracy, mean over products": step.mean_class, **thirds}
