"""The outcome of a run in a few lines, on the terminal and in its report."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from flows.gate.verdict import Finding, Verdict
from flows.report.markdown import markdown
from flows.report.refusal import WAYS_OUT, data_line, outcome_of, ways_out
from flows.report.run_report import Report
from flows.report.terminal import print_report
from models.recipe.config import Gate
from tests.unit.flows.test_markdown import REPORT

PHOTO = {"gate": "decided_away", "photo": "0123", "path": "b/7.jpg", "given label": "tea", "split": "train",
         "decision": "dropped", "score": 0.125}  # fmt: skip


def refused_by(*gates: str) -> Report:
    findings = tuple(Finding(gate, False, f"{gate} is bad", 0.5, photos=("0123",)) for gate in gates)
    verdict = Verdict(False, tuple(each.said for each in findings), "c" * 64, findings=findings)
    return replace(REPORT, verdict=verdict, cleaned=REPORT.data_after, look_at=[PHOTO])


def test_every_gate_has_a_way_out() -> None:
    keys = {field.name for field in fields(Gate)} - {"confidence", "enrol"}
    assert WAYS_OUT.keys() == keys | {"parity"}


def test_a_refusal_has_a_way_out_for_each_gate_and_the_override_unless_parity_is_broken() -> None:
    report = refused_by("tail", "decided_away")
    assert [way.partition(":")[0] for way in ways_out(report)[:-1]] == ["tail", "decided_away"]
    assert f"`cleanshelf publish {report.run} --despite REASON`" in ways_out(report)[-1]
    assert len(ways_out(refused_by("parity"))) == 1
    assert ways_out(REPORT) == []
    overridden = replace(report, verdict=report.verdict.despite("we looked", by="Ada"))
    assert (outcome_of(overridden), ways_out(overridden)) == ("judged", [])


def test_a_refusal_is_printed_with_the_tables_of_a_success_and_photos_to_look_at(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = refused_by("decided_away")
    print_report(report)
    output, story = capsys.readouterr().out, markdown(report)
    for expected in ("one graph", "cleaning", "b/7.jpg", "0.125", *ways_out(report), "known and not selected"):
        assert expected in output
        assert expected in story
    assert "model  refused: decided_away is bad" in output
    assert f"runs/{report.run}/report.html" in output


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model_version": 3}, "aaaaaaaaaaaa -> bbbbbbbbbbbb"),
        ({}, "aaaaaaaaaaaa -> bbbbbbbbbbbb, known and not selected"),
        ({"model_version": 3, "promoted": False}, "aaaaaaaaaaaa -> bbbbbbbbbbbb, known and not selected"),
        ({"model_version": 3, "selection": "entry 5 came in"}, "aaaaaaaaaaaa -> bbbbbbbbbbbb; entry 5 came in"),
        ({"data_after": "a" * 32}, "aaaaaaaaaaaa; cleaning made bbbbbbbbbbbb, which the evidence dropped"),
        ({"data_after": "a" * 32, "cleaned": "a" * 32}, "aaaaaaaaaaaa"),
    ],
)
def test_the_data_versions_of_a_run_in_one_line(changes: dict[str, object], line: str) -> None:
    assert data_line(replace(REPORT, **{"cleaned": "b" * 32} | changes)) == line  # type: ignore[arg-type]  # fields
