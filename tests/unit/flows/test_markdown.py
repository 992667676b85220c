"""The report of a retraining in Markdown, for people and for Prefect."""

from __future__ import annotations

from dataclasses import replace

from flows.gate.gates import Verdict
from flows.report.figures import Figure
from flows.report.markdown import drawn, markdown, outcome_of, table
from flows.report.run_report import Report, SampleAnswer
from flows.report.steps import StepAccuracy

REPORT = Report(
    run="20260101-030000-abcdef",
    data_before="a" * 32,
    data_after="b" * 32,
    steps=[StepAccuracy("one graph", 0.5, 0.25, None, 0.125, 0.75)],
    evidence=[
        {
            "step": "cleaning",
            "member": 1,
            "before": 0.5,
            "after": 0.625,
            "low": 0.01,
            "interval": [0.01, 0.25],
            "photos": 9,
            "stays": True,
        }
    ],
    verdict=Verdict(True, ("tail accuracy 0.750 against the current model's 0.500",), "c" * 64),
    figures=[Figure("Confusions", [{"shows": "tea", "photos": 40}, {"shows": "milk", "photos": 10}], ("photos",))],
)


def cells(text: str) -> list[list[str]]:
    """The cells of every line of every table."""
    return [[cell.strip() for cell in line.split(" | ")] for line in text.splitlines() if line.startswith("| ")]


def test_the_report_of_a_published_model_has_reasons_steps_and_answers() -> None:
    seen = [SampleAnswer("0123", "tea", "<b>tea</b>", 0.5, 3)]
    story = markdown(replace(REPORT, model_version=3, seen=seen))
    assert story.startswith(
        "# 20260101-030000-abcdef: model version 3 is the current model\n\n- tail accuracy 0.750 against the current model's 0.500"
    )
    assert "Data: aaaaaaaaaaaa -> bbbbbbbbbbbb" in story
    assert ["| one graph", "0.500", "0.250", "-", "0.125", "0.750 |"] in cells(story)
    assert ["| cleaning", "1", "-", "0.500", "0.625", "0.010", "0.010 to 0.250", "9", "yes   |"] in cells(story)
    assert ["| 0123", "&lt;b>tea&lt;/b>", "0.500", "tea   |"] in cells(story)
    assert "## Confusions\n\n| shows | photos" in story


def test_the_report_of_a_refused_model_has_no_answers() -> None:
    refused = replace(REPORT, verdict=Verdict(False, ("tail accuracy 0.1 is more than 0.02 below",), "c" * 64))
    assert outcome_of(refused) == "refused"
    assert markdown(refused).startswith("# 20260101-030000-abcdef: refused\n\n- tail accuracy 0.1")
    assert "The endpoint" not in markdown(refused)


def test_a_model_that_passed_is_judged_until_it_is_published() -> None:
    assert markdown(REPORT).startswith("# 20260101-030000-abcdef: judged\n")


def test_bars_are_drawn_against_the_largest_number() -> None:
    assert [row["photos"] for row in drawn(REPORT.figures[0])] == ["████████████████████ 40", "█████ 10"]
    shares = Figure("Accuracy", [{"accuracy": 0.5}, {"accuracy": 0.0}], ("accuracy",))
    assert [row["accuracy"] for row in drawn(shares)] == ["██████████ 0.500", "0.000"], "against 1"
    assert drawn(Figure("Nothing", [], ("photos",))) == []


def test_labels_are_escaped_and_columns_aligned() -> None:
    assert table([{"label": "tea | green", "is_new": True}, {"label": "<b>", "is_new": False}]) == (
        "| label        | is new |\n"
        "| ------------ | ------ |\n"
        "| tea \\| green | yes    |\n"
        "| &lt;b>       | no     |"
    )  # fmt: skip


def test_no_rows_make_no_table() -> None:
    assert table([], columns=("a",)) == ""
