"""The story of a retraining where Prefect shows it: an artifact for people, an event for automations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event

if TYPE_CHECKING:
    from flows.retrain import Report

EVIDENCE = ("step", "member", "before", "after", "low", "photos", "stays")


def tell(report: Report) -> None:
    """Artifact `retraining` and event `cleanshelf.model.published`, `.staged` or `.refused`; neither before it is decided."""
    if report.model_version is None and report.verdict.passed:
        return
    outcome = "refused" if report.model_version is None else "published" if report.promoted else "staged"
    create_markdown_artifact(markdown(report), key="retraining", description=f"{report.run}: {outcome}")
    emit_event(
        f"cleanshelf.model.{outcome}",
        resource={"prefect.resource.id": f"cleanshelf.run.{report.run}", "prefect.resource.name": report.run},
        payload={
            "model_version": report.model_version,
            "data_version": report.data_after,
            "reasons": report.verdict.told,
        },
    )


def markdown(report: Report) -> str:
    """What each step was worth, why it stayed, what the gate said, and what the endpoint answered."""
    steps = [asdict(row) for row in report.steps]
    seen = [{"photo": each.photo, "says": each.label, "probability": each.probability, "truth": each.truth}
            for each in report.seen]  # fmt: skip
    does = "answers" if report.promoted else "is staged"
    model = f"model version {report.model_version} {does}" if report.model_version else "refused"
    parts = [
        f"# {report.run}: {model}",
        "\n".join(f"- {reason}" for reason in report.verdict.told),
        f"Data: {report.data_before[:12]} -> {report.data_after[:12]}",
        "## Accuracy on test photos after each step",
        table(tuple(steps[0]) if steps else (), steps),
        "## Mean-class accuracy on validation photos, which decides what stays",
        table(EVIDENCE, report.evidence),
    ]
    if seen:
        parts += ["## The endpoint, asked about test photos", table(tuple(seen[0]), seen)]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """In GitHub's form; labels are text, whatever they hold."""
    if not rows:
        return ""
    lines = [[column.replace("_", " ") for column in columns], ["---"] * len(columns)]
    lines += [[_cell(row.get(column)) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:.3f}" if isinstance(value, float) else str("-" if value is None else value)
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
