"""report.md of a retraining, which Prefect also shows as an artifact, and the event about its outcome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flows.orchestrator.events import happened
from flows.orchestrator.reports import emit, show_text
from flows.report.cell import cell
from flows.report.refusal import data_line, outcome_of, refusals, ways_out

if TYPE_CHECKING:
    from flows.report.figures import Figure
    from flows.report.run_report import Report

EVIDENCE = ("step", "member", "method", "before", "after", "low", "interval", "photos", "stays")
BAR = 20  # characters of the longest bar


def publish_report(report: Report) -> None:
    """Creates the artifact `retraining` and emits `cleanshelf.model.published`, `.staged` or `.refused`.

    Does nothing while the outcome is still open.
    """
    if (outcome := outcome_of(report)) == "judged":
        return
    show_text(markdown(report), key="retraining", description=f"{report.run}: {outcome}")
    details = {"data_version": report.data_after, "reasons": report.verdict.explanation}
    emit(happened(f"model.{outcome}", to="run", name=report.run, model_version=report.model_version, **details))


def markdown(report: Report) -> str:
    """The report: verdict, accuracy after each step, why steps were kept, answers of the endpoint, and the figures."""
    outcome = outcome_of(report)
    answers = [
        {"photo": each.photo, "says": each.label, "probability": each.probability, "truth": each.truth}
        for each in report.seen
    ]
    model = f"model version {report.model_version}"
    titles = {"published": f"{model} is the current model", "staged": f"{model} is registered"}
    sections = {
        "Accuracy on test photos after each step": table([asdict(row) for row in report.steps]),
        "Mean-class accuracy on validation photos, which decides what stays": table(report.evidence, columns=EVIDENCE),
        "Photos that explain the refusal": table(report.look_at),
        "The endpoint, asked about test photos": table(answers),
        **{figure.title: table(drawn(figure)) for figure in report.figures},
    }
    parts = [
        f"# {report.run}: {titles.get(outcome, outcome)}",
        "\n".join(f"- {reason.says} {reason.todo}" for reason in refusals(report)),
        "\n".join(f"- {reason}" for reason in report.verdict.explanation),
        f"Data: {data_line(report)}",
        f"With pictures: `runs/{report.run}/report.html`",
        "\n".join(f"- {way_out}" for way_out in ways_out(report)),
        *(f"## {title}\n\n{text}" for title, text in sections.items() if text),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def drawn(figure: Figure) -> list[dict[str, Any]]:
    """The rows with a bar before each number of `bars`; the longest bar stands for the largest number, at least 1."""
    if not figure.rows:
        return []
    largest = {name: max(1, *(row[name] for row in figure.rows)) for name in figure.bars}

    def with_bar(name: str, number: float) -> str:
        return f"{'█' * round(BAR * number / largest[name])} {_cell(number)}".lstrip()

    return [row | {name: with_bar(name, row[name]) for name in figure.bars} for row in figure.rows]


def table(rows: Sequence[dict[str, Any]], *, columns: Sequence[str] = ()) -> str:
    """The rows as a Markdown table with aligned columns; by default with the columns of the first row."""
    if not rows:
        return ""
    names = columns or tuple(rows[0])
    lines = [[name.replace("_", " ") for name in names], *([_cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(names))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def _cell(value: object) -> str:
    """The text of a cell, in which no character is read as Markdown's table or as HTML."""
    return cell(value).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
