"""Outcome of a run in a few lines: its data versions, the reasons of a refusal in plain words, and the ways out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.gate.reasons import Reason, reason_of

if TYPE_CHECKING:
    from flows.report.run_report import Report

WAYS_OUT = {
    "parity": "parity cannot be overridden: see the log of the step `export`, and retrain",
    "mean_class": "more or better photos, or `--set gate.mean_class=` with the fall that you accept",
    "head": "more or better photos, or `--set gate.head=` with the fall that you accept",
    "middle": "more or better photos, or `--set gate.middle=` with the fall that you accept",
    "tail": "more photos of the rare products, or `--set gate.tail=` with the fall that you accept",
    "above_chance": "more or better photos, longer training, or pretrained weights (`--weights FILE`)",
    "class_floor": "more photos of these products (`cleanshelf ingest`), or a lower `--set gate.class_floor=`",
    "decided_away": "right labels for these photos (`cleanshelf feedback FILE`), `--set clean.use=weigh`, which leaves none "
    "out, or a higher `--set gate.decided_away=`",
    "latency_ms": "fewer crops (`--set export.crops=1`), fewer members, or a larger `--set gate.latency_ms=`",
}


def outcome_of(report: Report) -> str:
    """The outcome: published, staged or refused; judged if the run passed the gate and has not been published yet."""
    if report.model_version is not None:
        return "published" if report.promoted else "staged"
    return "judged" if report.verdict.may_serve else "refused"


def data_line(report: Report) -> str:
    """The data versions before the run and of its model, and whether the latter is selected, in one line."""
    line = " -> ".join(dict.fromkeys((report.data_before[:12], report.data_after[:12])))
    if report.cleaned not in ("", report.data_after):
        line = f"{report.data_before[:12]}; cleaning made {report.cleaned[:12]}, which the evidence dropped"
    elif report.selection:
        line += f"; {report.selection}"
    elif outcome_of(report) != "published" and report.data_after != report.data_before:
        line += ", known and not selected"
    return line


def refusals(report: Report) -> list[Reason]:
    """Reasons of a refusal in plain words, one for each gate that refused; none if nothing was refused."""
    refused = [finding for finding in report.verdict.findings if not finding.passed]
    return [reason_of(finding) for finding in refused] if outcome_of(report) == "refused" else []


def ways_out(report: Report) -> list[str]:
    """Ways out of a refusal: one for each gate that refused, and the override; none if nothing was refused."""
    if outcome_of(report) != "refused":
        return []
    gates = [finding.gate for finding in report.verdict.findings if not finding.passed]
    ways = [f"{gate}: {WAYS_OUT[gate]}" for gate in gates if gate in WAYS_OUT]
    override = (
        f"`cleanshelf publish {report.run} --despite REASON` publishes it nevertheless, with your reason on record"
    )
    return [*ways, *([] if "parity" in gates else [override])]
