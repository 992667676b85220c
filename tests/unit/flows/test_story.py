"""The markdown in which Prefect shows a retraining."""

from __future__ import annotations

from flows.gates import Verdict
from flows.publish import Seen
from flows.report import Row
from flows.retrain import Report
from flows.story import markdown, table

REPORT = Report(
    run="20260101-030000-abcdef",
    data_before="a" * 32,
    data_after="b" * 32,
    steps=[Row("one graph", 0.5, 0.25, None, 0.125, 0.75)],
    evidence=[
        {"step": "cleaning", "member": 1, "before": 0.5, "after": 0.625, "low": 0.01, "photos": 9, "stays": True}
    ],
    verdict=Verdict(True, ("tail accuracy 0.750 against 0.500 now serving",), "c" * 64),
)


def test_a_published_model_is_told_with_its_reasons_steps_and_answers() -> None:
    seen = [Seen("0123", "tea | green", "<b>tea</b>", 0.5, 3)]
    story = markdown(Report(**(vars(REPORT) | {"model_version": 3, "seen": seen})))
    assert story.startswith("# 20260101-030000-abcdef: model version 3 answers\n\n- tail accuracy 0.750 against 0.500")
    assert "Data: aaaaaaaaaaaa -> bbbbbbbbbbbb" in story
    assert "| one graph | 0.500 | 0.250 | - | 0.125 | 0.750 |" in story
    assert "| cleaning | 1 | 0.500 | 0.625 | 0.010 | 9 | yes |" in story
    assert "| 0123 | &lt;b>tea&lt;/b> | 0.500 | tea \\| green |" in story


def test_a_refused_one_is_told_without_answers() -> None:
    story = markdown(REPORT)
    assert story.startswith("# 20260101-030000-abcdef: refused\n")
    assert "The endpoint" not in story


def test_nothing_makes_no_table() -> None:
    assert table(("a",), []) == ""
