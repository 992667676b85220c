"""Findings of the gates in words for the manager of a shop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flows.gate.gates import LeftOut, judge
from flows.gate.reasons import NEXT, SENTENCES, reason_of
from flows.gate.verdict import Finding
from flows.report.refusal import WAYS_OUT
from models.recipe.config import Gate
from tests.unit.flows.test_gates import (
    ALIKE,
    EXACT,
    LABELS,
    WORSE_TAIL,
    GateInput,
    answers,
    finding_of,
    hits,
    verdict_on,
)


def test_every_gate_has_a_sentence_and_a_next_step() -> None:
    assert SENTENCES.keys() == NEXT.keys() == WAYS_OUT.keys()


def test_a_fall_says_by_how_much_and_in_which_products() -> None:
    reason = reason_of(finding_of(verdict_on(WORSE_TAIL, mean_class=1), "tail"))
    assert reason.says == (
        "On average over the products with the fewest photos, the new model recognises 50.0% of the test photos, the model "
        "in use 87.5%. That is 37.5 points worse; at most 2 points worse are accepted. It lost most with tea and wine."
    )
    assert "Review" in reason.todo


def test_a_gain_that_is_too_small_is_not_called_a_fall() -> None:
    better = answers(hits(9, 8, 8, 8, 8, 8, of=10), hits(8, 8, 8, 8, 8, 8, of=10))
    says = reason_of(finding_of(verdict_on(better, mean_class=-0.1, confidence=0.5), "mean_class")).says
    assert "1.7 points better; at least 10 points better are demanded." in says


@pytest.mark.parametrize("gate", ["mean_class", "tail", "above_chance"])
def test_what_could_not_be_measured_asks_for_test_photos(gate: str) -> None:
    reason = reason_of(Finding(gate, False, "cannot be measured", 0.0))
    assert "no test photos" in reason.says
    assert "Deliver test photos" in reason.todo


def test_lost_products_are_named_worst_first_and_the_others_counted() -> None:
    away = np.repeat(np.arange(6), (40, 39, 38, 37, 36, 35))
    cleaning = LeftOut(LABELS, np.full(6, 40), np.char.mod("%d", np.arange(len(away))).astype(object), away)
    finding = finding_of(verdict_on(ALIKE, cleaning=cleaning, above_chance=-1), "decided_away")
    assert finding.num_products == 6
    assert "50% of the photos of ale, beer, cider and 3 more. Either" in reason_of(finding).says
    floor = answers(hits(0, 50, 50, 50, 50, 50, of=50), None)
    assert "hardly recognises ale: in fewer than 10%" in reason_of(finding_of(verdict_on(floor), "class_floor")).says


def test_findings_of_earlier_releases_and_unknown_gates_still_have_a_sentence() -> None:
    assert "some products" in reason_of(Finding("class_floor", False, "x", 0.1, 0.0)).says
    assert reason_of(Finding("later", False, "something fell", 0.1)).says == "something fell."


def test_a_name_of_any_length_leaves_the_sentence_readable() -> None:
    finding = Finding("class_floor", False, "x", 0.1, 0.0, products=("x" * 2000,), num_products=1)
    assert len(reason_of(finding).says) < 200


def test_every_passing_gate_says_what_it_found() -> None:
    evidence = GateInput(EXACT, ALIKE, ms=(3.0, 2.5), cleaning=LeftOut(LABELS, np.full(6, 9), *no_photos()))
    verdict = judge(evidence, settings=Gate(latency_ms=5), graph_sha256="a")
    assert [reason_of(each).todo for each in verdict.findings] == [""] * 9
    assert "3.0 ms for a photo, the model in use 2.5 ms." in reason_of(finding_of(verdict, "latency_ms")).says
    slow = replace(finding_of(verdict, "latency_ms"), passed=False)
    assert "At most 5 ms are accepted." in reason_of(slow).says


def no_photos() -> tuple[np.ndarray, np.ndarray]:
    return np.array([], object), np.array([], np.int64)
