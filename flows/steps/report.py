"""The report of a run: what changed since the last one, what it cost, and its files."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict

from flows.gate.verdict import Verdict
from flows.registry.repository import repository
from flows.registry.versions import named
from flows.report.changes import against_last_run, changed_products
from flows.report.figures import Figure, figures
from flows.report.html.page import write_page
from flows.report.label_issues import label_figures, num_issues
from flows.report.markdown import markdown, publish_report
from flows.report.run_report import Report, to_json
from flows.report.steps import StepAccuracy
from flows.run.history import state_of
from flows.run.measure import compare_graph, read_answers
from flows.run.plans import against_plan
from flows.run.run import ResultCache, Run, inputs_of
from flows.run.step import step
from flows.workspace.results import Balanced, DataFolder, Exported
from models.data.manifest import read_manifest

log = logging.getLogger("cleanshelf")


def all_figures(
    run: Run,
    data: DataFolder,
    graph: Exported,
    verdict: Verdict,
    *,
    balanced: Sequence[Balanced],
    cleaned: DataFolder,
    final: StepAccuracy,
) -> list[Figure]:
    """Every figure of a run up to its verdict.

    data, cleaned: the data version that the model learnt from, and the one that cleaning made.
    final: the accuracy of the graph.
    """
    return [
        *figures(data, balanced, graph, cleaned=cleaned),
        *label_figures(cleaned, run.workspace.runs / "stages"),
        against_last_run(read_manifest(data), final, num_issues(cleaned), last_run(run)),
        *against_current(run, data, graph, verdict),
        costs(run),
        *planned(run),
    ]


def against_current(run: Run, data: DataFolder, graph: Exported, verdict: Verdict) -> list[Figure]:
    """Figures of the changes against the model that the verdict compared the graph with; none if there was none.

    The answers of that model are a cached result, which the gate left.
    """
    if verdict.against is None:
        return []
    current = repository(run.workspace).path(verdict.against) / "model.onnx"
    serving = compare_graph(ResultCache(run.workspace), data, current)
    return changed_products(read_answers(read_manifest(data), graph, serving), named(verdict.against))


def last_run(run: Run) -> Report | None:
    """The report of the run before this one that was judged; None if there is none, or if its run.json is damaged."""
    earlier = (file for file in sorted(run.workspace.runs.glob("*/run.json")) if file.parent.name < run.id)
    for file in reversed(list(earlier)):
        with suppress(OSError, ValueError, KeyError, TypeError):
            return Report.of(json.loads(file.read_bytes()))
    return None


def costs(run: Run) -> Figure:
    """Wall seconds of each step up to the verdict; steps may have run side by side."""
    steps = [each for each in state_of(run.workspace, run.id).steps if each.seconds is not None]
    rows = [{"step": each.step, "seconds": each.seconds, "reused": bool(each.is_reused)} for each in steps]
    return Figure("Seconds per step", rows, ("seconds",), "cost")


def planned(run: Run) -> list[Figure]:
    """The estimates of `cleanshelf plan` for this run beside what it took; none without a plan."""
    start, steps = inputs_of(run.workspace, run.id).get("data_version", ""), state_of(run.workspace, run.id).steps
    rows = against_plan(run.workspace, start, run.recipe, steps)
    for row in rows:
        log.info("plan: %s: %.0f s planned, %.0f s taken (%+d %%)", *row.values())
    return [Figure("Plan and time taken", rows)] if rows else []


@step("write report")
def write_report(run: Run, report: Report, data: DataFolder | None = None) -> Report:
    """Writes the report: run.json for programs, report.html and report.md for people.

    Prefect gets report.md once the outcome is decided.

    data: the data version whose photos report.html shows; None: those that an earlier call has found.
    """
    (run.folder / "run.json").write_text(to_json(asdict(report)), encoding="utf-8")
    (run.folder / "report.md").write_text(markdown(report), encoding="utf-8")
    draw(run, report, data)
    publish_report(report)
    return report


def draw(run: Run, report: Report, data: DataFolder | None) -> None:
    """Writes report.html. A picture that cannot be drawn does not end a run of days: the log says what happened."""
    try:
        write_page(run.folder, report, data)
    except Exception:  # matplotlib and Pillow raise all kinds of exceptions
        log.exception("report.html of run %s could not be drawn; report.md has all its numbers", run.id)
