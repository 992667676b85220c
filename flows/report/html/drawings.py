"""The charts of a report, drawn from its rows, each with its numbers in words for those who cannot see it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from flows.report.figures import Figure
from flows.report.html.charts import FIRST, MUTED, bars, columns, reliability, stack
from flows.report.html.summary import duration, percent
from flows.report.run_report import Report

Rows = Sequence[Mapping[str, Any]]
LONGEST_STEPS = 16  # bars of the chart of costs
SHORTEST_S = 0.1  # a step below it is not drawn


def charts(report: Report, figures: Mapping[str, Figure]) -> dict[str, Markup]:
    """The charts by their names, without those that have nothing to show."""
    rows = {name: figure.rows for name, figure in figures.items()}
    drawn = {
        "gains": gains(report.evidence),
        "steps": steps(report),
        "thirds": thirds(report),
        **{name: draw(rows[name]) for name, draw in CHARTS.items() if name in rows},
    }
    return {name: chart for name, chart in drawn.items() if chart}


def gains(evidence: Rows) -> Markup | None:
    """Gain of each step on the validation photos, in percentage points, with its interval."""
    told = [row for row in evidence if row.get("before") is not None and row.get("after") is not None]
    if not told:
        return None
    points = [100 * (row["after"] - row["before"]) for row in told]
    outcome = ["kept" if row["stays"] else "dropped" for row in told]
    texts = [f"{point:+.1f}, {each}" for point, each in zip(points, outcome, strict=True)]
    intervals = [row.get("interval") or (None, None) for row in told]
    ends = [None if low is None or high is None else (100 * low, 100 * high) for low, high in intervals]
    names = [*map(step_name, told)]
    alt = described("Bar chart: gain of each step in percentage points", names, texts)
    colours = [FIRST if row["stays"] else MUTED for row in told]
    return bars(names, points, alt=alt, texts=texts, colours=colours, ends=ends)


def described(what: str, names: Iterable[str], texts: Iterable[str]) -> str:
    """The text that stands for a chart: what it shows, and each of its numbers."""
    return f"{what}. {'; '.join(f'{name}: {text}' for name, text in zip(names, texts, strict=True))}"


def step_name(row: Mapping[str, Any]) -> str:
    """A step of the evidence, with its method and the number of its network."""
    method = f", {row['method']}" if row.get("method") else ""
    network = f", network {row['member']}" if row.get("member") else ""
    return f"{row['step']}{method}{network}"


def steps(report: Report) -> Markup | None:
    """Accuracy on the test photos after each step."""
    told = [(row.step, row.mean_class) for row in report.steps if row.mean_class is not None]
    return shares_by("Bar chart: accuracy after each step", told)


def thirds(report: Report) -> Markup | None:
    """Accuracy of frequent and rare products: of the labels as delivered, and of the graph."""
    if not report.steps:
        return None
    names = ("head", "middle", "tail")
    series = {
        "labels as delivered, one network": [getattr(report.steps[0], name) for name in names],
        "this model": [getattr(report.steps[-1], name) for name in names],
    }
    if not any(value is not None for values in series.values() for value in values):
        return None
    texts = [", ".join(map(percent, values)) for values in series.values()]
    alt = described("Bar chart: accuracy of head, middle and tail", series, texts)
    return columns(("head\n(most photos)", "middle", "tail\n(fewest photos)"), series, alt=alt)


def tail(rows: Rows) -> Markup | None:
    """Accuracy by number of training photos."""
    told = [(f"{row['training photos']} photos, {counted(row['classes'], 'product')}", row["accuracy"]) for row in rows]
    return shares_by("Bar chart: accuracy by number of training photos of a product", told)


def counted(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shares_by(what: str, told: Sequence[tuple[str, float]]) -> Markup | None:
    """Bars of shares, with their percentages."""
    if not told:
        return None
    names, shares = zip(*told, strict=True)
    texts = [*map(percent, shares)]
    return bars(names, shares, alt=described(what, names, texts), texts=texts)


def trust(rows: Rows) -> Markup:
    """Reliability diagram."""
    texts = [f"{percent(row['right'])} of {row['photos']:,}" for row in rows]
    what = "Reliability diagram: share of right answers by probability"
    return reliability(rows, alt=described(what, [row["probability"] for row in rows], texts))


def label_scores(rows: Rows) -> Markup:
    """Label quality of kept and of flagged labels."""
    series = {
        name: [row[key] for row in rows] for name, key in (("no decision", "believed"), ("label issue", "suspect"))
    }
    counts = [f"{sum(values):,}" for values in series.values()]
    alt = described("Bar chart: photos by label quality", series, counts)
    return stack([row["score"][:3] for row in rows], series, alt=alt, xlabel="label quality, from")


def cost(rows: Rows) -> Markup | None:
    """Seconds of the longest steps, in the order in which they ended."""
    least = sorted(row["seconds"] for row in rows)[-LONGEST_STEPS:][0]
    longest = [row for row in rows if row["seconds"] >= max(least, SHORTEST_S)]
    if not longest:
        return None
    texts = [duration(row["seconds"]) + (", reused" if row["reused"] else "") for row in longest]
    names = [row["step"] for row in longest]
    alt = described("Bar chart: time of each step", names, texts)
    return bars(names, [row["seconds"] for row in longest], alt=alt, texts=texts)


CHARTS = {"tail": tail, "reliability": trust, "labels": label_scores, "cost": cost}
