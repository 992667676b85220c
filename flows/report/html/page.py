"""report.html of a run: one file with its pictures, readable without a network, on a phone, in the dark and in print."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from contextlib import suppress
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from durable import overwrite
from flows.gate.reasons import reason_of
from flows.report.cell import cell
from flows.report.html.pictures import PICTURES, read_pictures, shown_photos, take_pictures, write_pictures
from flows.report.html.summary import percent, summary
from flows.report.refusal import data_line, refusals, ways_out
from flows.report.run_report import Report

PAGE = "report.html"
TEMPLATES = Path(__file__).parents[1] / "templates"
SHOWN = 40  # rows of a table
LONGEST = 120  # characters of a label in a table; its title has all
DECISIONS = {"dropped": "left out", "doubted": "counts less", "relabelled": "relabelled", "": "kept"}


def write_page(folder: Path, report: Report, data: Path | None) -> None:
    """Writes report.html in the folder of a run, and the pictures that it shows.

    data: the data version to take pictures from that no earlier call has taken.
    """
    pictures = read_pictures(folder)
    if data is not None:
        missing = [photo for photo in shown_photos(report) if photo not in pictures]
        pictures |= take_pictures(data, missing) if missing else {}
        write_pictures(folder, pictures)
    overwrite(folder / PAGE, page(report, pictures).encode())


def forget(runs: Path, photos: Set[str]) -> None:
    """Takes photos (ids) out of the reports of all runs. A kill leaves a report without a page, and the next call makes it."""
    for folder in (file.parent for file in sorted(runs.glob(f"*/{PICTURES}"))):
        pictures = read_pictures(folder)
        rest = {photo: each for photo, each in pictures.items() if photo not in photos}
        if len(rest) < len(pictures):
            (folder / PAGE).unlink(missing_ok=True)
            with suppress(OSError, ValueError, KeyError, TypeError):  # of a run.json that is gone or damaged
                report = Report.of(json.loads((folder / "run.json").read_bytes()))
                overwrite(folder / PAGE, page(report, rest).encode())
            write_pictures(folder, rest)


def page(report: Report, pictures: Mapping[str, str]) -> str:
    """The page of a report; a figure that is missing or empty leaves its section out.

    pictures: data URIs by id of the photo.
    """
    from flows.report.html.drawings import charts  # imports matplotlib, which takes as long as many a verb

    figures = {each.name: each for each in report.figures if each.name and each.rows}
    return environment().get_template("report.html.j2").render(
        report=report,
        summary=summary(report, figures),
        data_line=data_line(report),
        refusals=refusals(report),
        ways_out=ways_out(report),
        reasons=[reason_of(finding) for finding in report.verdict.findings],
        rows={name: figure.rows for name, figure in figures.items()},
        titles={name: figure.title for name, figure in figures.items()},
        others=[each for each in report.figures if not each.name and each.rows],
        charts=charts(report, figures),
        pictures=pictures,
        decisions=DECISIONS,
        shown=SHOWN,
    )  # fmt: skip


def environment() -> Environment:
    """Jinja with the templates of the report; all text is escaped."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"percent": percent, "figure": figure, "cell": cell, "label": label, "code": code}
    return made


def label(text: object) -> Markup:
    """A label as an element of its own direction, shortened where it is very long."""
    whole = "-" if text is None else str(text)
    short = whole if len(whole) <= LONGEST else f"{whole[:LONGEST]}…"
    return Markup('<bdi title="{}">{}</bdi>' if short != whole else "<bdi>{1}</bdi>").format(whole, short)


def figure(value: float | None) -> str:
    """A share as a percentage, and a count with separators."""
    return percent(value) if value is None or isinstance(value, float) else f"{value:,}"


def code(text: str) -> Markup:
    """A sentence whose parts in backticks are shown as commands."""
    parts = (
        Markup("<code>{}</code>").format(part) if i % 2 else escape(part) for i, part in enumerate(text.split("`"))
    )
    return Markup("").join(parts)
