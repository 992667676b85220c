"""Output for people: progress on stderr, results on stdout."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from flows.report.cell import cell
from flows.report.live import show_live_lines
from flows.report.refusal import data_line, outcome_of, refusals, ways_out

if TYPE_CHECKING:
    from flows.delivery.build import IntakeReport
    from flows.report.run_report import Report, SampleAnswer
    from flows.report.steps import StepAccuracy


def show_progress() -> None:
    """Prints the log lines of the steps to stderr; Prefect records the same lines, but no live ones."""
    log = logging.getLogger("cleanshelf")
    log.setLevel(logging.INFO)
    console = Console(stderr=True, width=None if Console(stderr=True).is_terminal else 140)
    handler = RichHandler(
        console=console, show_path=False, show_level=False, markup=False, highlighter=None, log_time_format="%H:%M:%S"
    )
    log.handlers = [handler]
    log.propagate = False
    show_live_lines(console, handler)


@contextmanager
def photo_bar(photos: Iterable[str]) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, with rate and time left; yields a function that sets the number of photos done.

    The photos are counted in the background.
    """
    rate = TextColumn("{task.fields[rate]}")
    columns = (BarColumn(), MofNCompleteColumn(), TaskProgressColumn(), rate, TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, rate="")
        if console.is_terminal:
            Thread(target=lambda: bar.update(task, total=sum(1 for _ in photos)), daemon=True).start()

        def done(number: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, completed=number, rate=f"{speed:,.0f} photos/s" if speed else "")

        yield done


def print_table(columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Prints rows as an aligned table, which is not cut off if the output is not a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(cell(row.get(column, ""), false="") for column in columns))
    width = None if Console().is_terminal else 160
    # Labels are not markup: [red] and :smile: are names like any other.
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    console.print(table) if rows else print("none yet")


def print_intake(report: IntakeReport, outcome: str) -> None:
    """Prints what became of the rows and files of a delivery, and the classes and splits of the new version."""
    from flows.delivery.accounts import sentences
    from models.data.manifest import UNLABELLED

    print(report.in_words())
    for reason, count in sorted(report.quarantined.items()):
        print(f"  quarantined {count}: {reason}")
    for line in sentences(vars(report.accounts), report.splits):
        print(line)
    if unlabelled := report.counts[UNLABELLED]:
        print(f"{unlabelled:,} photos without a label, for distillation only")
    for warning in report.warnings:
        print(f"  note: {warning}")
    print(outcome)


def print_steps(steps: Sequence[StepAccuracy]) -> None:
    """Prints the accuracy after each step, and the change by the step."""
    before = (None, *steps[:-1])
    rows = [
        {
            "step": row.step,
            "top-1": row.top1,
            "mean class": row.mean_class,
            "change": _change(last, row),
            "head third": row.head,
            "middle third": row.middle,
            "tail third": row.tail,
        }
        for row, last in zip(steps, before, strict=True)
    ]
    print_table(("step", "top-1", "mean class", "change", "head third", "middle third", "tail third"), rows)


def _change(last: StepAccuracy | None, row: StepAccuracy) -> str:
    before, after = last.mean_class if last else None, row.mean_class
    return "" if before is None or after is None else f"{after - before:+.3f}"


def print_evidence(evidence: Sequence[Mapping[str, Any]]) -> None:
    """Prints why each step was kept or dropped."""
    rows = [
        {
            **each,
            "step": f"{each['step']}: {each['method']}" if "method" in each else each["step"],
            "gains at least": each["low"],
        }
        for each in evidence
    ]
    print_table(("step", "member", "before", "after", "gains at least", "photos", "stays"), rows)


def print_answers(answers: Sequence[SampleAnswer]) -> None:
    """Prints the answers of the endpoint to some test photos."""
    rows = [
        {
            "photo": answer.photo[:8],
            "endpoint says": answer.label,
            "probability": answer.probability,
            "truth": answer.truth,
            "right": "yes" if answer.label == answer.truth else "NO",
        }
        for answer in answers
    ]
    print_table(("photo", "endpoint says", "probability", "truth", "right"), rows)


def print_report(report: Report) -> None:
    """Prints the report of a retraining, also of a refused one."""
    print_steps(report.steps)
    print("\nMean-class accuracy on validation photos, which decides what stays:\n")
    print_evidence(report.evidence)
    print()
    if report.seen:
        print_answers(report.seen)
        print()
    if report.look_at:
        print("Photos that explain the refusal:\n")
        print_table(tuple(report.look_at[0]), report.look_at)
        print()
    print(f"data   {data_line(report)}")
    print(outcome(report))
    for reason in refusals(report):
        print(f"why    {reason.says}")
    for way_out in ways_out(report):
        print(f"       {way_out}")
    print(f"run    runs/{report.run}/report.html has all of it, with pictures; report.md beside it is the same as text")


def outcome(report: Report) -> str:
    """The outcome for the model, with the reasons, in one line."""
    version = report.model_version
    states = {
        "published": f"version {version} is the current model",
        "staged": f"version {version} is registered, `cleanshelf promote {version}` makes it answer",
        "refused": "refused",
        "judged": "judged",
    }
    return f"model  {states[outcome_of(report)]}: {'; '.join(report.verdict.explanation)}"
