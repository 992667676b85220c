"""A run in three lines for the manager of a shop: what became of the model, how good it is, and what to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from flows.report.figures import Figure
from flows.report.refusal import outcome_of, refusals
from flows.report.run_report import Report

TONES = {"published": "good", "staged": "good", "judged": "plain", "refused": "bad"}
WORDS = {"published": "In use", "staged": "Ready", "judged": "Passed", "refused": "Refused"}


@dataclass(frozen=True)
class Summary:
    """The top of the report. tone: "good", "plain" or "bad"; word: the outcome; when: the start; lines: three sentences."""

    tone: str
    word: str
    when: str
    lines: tuple[str, str, str]


def summary(report: Report, figures: Mapping[str, Figure]) -> Summary:
    """The top of the report; `figures`: by their names."""
    outcome = outcome_of(report)
    third = reason(report) if outcome == "refused" else labels(figures)
    return Summary(TONES[outcome], WORDS[outcome], started(report.run), (fate(report), accuracy(report), third))


def fate(report: Report) -> str:
    """Outcome for the model."""
    version, override = report.model_version, report.verdict.override
    passed = f"a check refused it, and {override.by} overrode the check" if override else "it passed all checks"
    current = report.verdict.against
    stays = "There is no model in use." if current is None else f"Model version {current} stays in use."
    return {
        "published": f"The new model is in use as version {version}: {passed}.",
        "staged": f"The new model is registered as version {version} and not in use yet: {passed}.",
        "judged": "The new model passed all checks. It is not in use yet.",
        "refused": f"The new model was refused. {stays}",
    }[outcome_of(report)]


def accuracy(report: Report) -> str:
    """The accuracy of the model, and of the one that was in use, on the same test photos."""
    final = report.steps[-1].mean_class if report.steps else None
    if final is None:
        return "How good it is could not be measured: there are no test photos."
    before = next((finding.before for finding in report.verdict.findings if finding.gate == "mean_class"), None)
    line = f"It recognises {percent(final)} of the test photos, as the mean over all products"
    return f"{line}." if before is None else f"{line}; the model before it {percent(before)} of the same photos."


def labels(figures: Mapping[str, Figure]) -> str:
    """The label issues that cleaning found."""
    rows = figures["labels"].rows if "labels" in figures else []
    issues, believed = (sum(row[name] for row in rows) for name in ("suspect", "believed"))
    if not issues + believed:
        return "Labels were not checked in this run."
    share = percent(issues / (issues + believed))
    worst = " Please look at the worst of them below." if issues else ""
    return f"{issues:,} of {issues + believed:,} labels that were checked are probably wrong ({share}).{worst}"


def reason(report: Report) -> str:
    """The first reason of a refusal, and how many more there are."""
    plain = [reason.says for reason in refusals(report)]
    first, *others = plain or [f"{each}." for each in report.verdict.explanation] or ["the checks give none."]
    more = f" There {'is one more reason' if len(others) == 1 else f'are {len(others)} more reasons'} below."
    return f"The reason: {first}{more if others else ''}"


def started(run: str) -> str:
    """The time at which a run started, from its name; the name itself if it has none."""
    try:
        return f"{datetime.strptime(run[:15], '%Y%m%d-%H%M%S'):%d %B %Y, %H:%M} UTC"
    except ValueError:
        return run


def percent(share: float | None) -> str:
    """A share as a percentage with one decimal; "-" for None."""
    return "-" if share is None else f"{share:.1%}"


def duration(seconds: float) -> str:
    """Seconds in the two largest units."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
