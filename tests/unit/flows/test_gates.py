"""When a model may be served."""

from __future__ import annotations

import pytest

from flows.gates import Verdict, judge
from models.config import Gate

EXACT = {"different_ids": 0, "probability": 3e-8}
SERVING = {"mean_class": 0.75, "tail": 0.5}


def ask(
    new: dict[str, float | None],
    serving: dict[str, float | None] | None = SERVING,
    parity: dict[str, float] = EXACT,
    **allowed: float,
) -> Verdict:
    return judge(new, serving, parity, settings=Gate(**allowed), graph_sha256="abc")


def test_the_first_model_has_nothing_to_be_worse_than() -> None:
    verdict = ask({"mean_class": None, "tail": None}, None)
    assert verdict.passed
    assert "nothing is serving yet" in verdict.reasons[1]
    assert verdict.graph_sha256 == "abc"


@pytest.mark.parametrize("serving", [None, SERVING])
def test_a_graph_that_differs_from_torch_is_refused(serving: dict[str, float | None] | None) -> None:
    verdict = ask({"mean_class": 1.0, "tail": 1.0}, serving, {"different_ids": 3, "probability": 0.2})
    assert not verdict.passed
    assert verdict.reasons == ("parity: 3 answers differ from torch",)


def test_what_the_graph_was_compared_with_is_named() -> None:
    verdict = judge(SERVING, SERVING, {"different_ids": 1, "probability": 0.2}, settings=Gate(), graph_sha256="abc",
                    reference="version 7")  # fmt: skip
    assert verdict.reasons == ("parity: 1 answers differ from version 7",)


def test_as_good_passes_and_says_both_figures() -> None:
    verdict = ask({"mean_class": 0.75, "tail": 0.5}, mean_class=0.0, tail=0.0)
    assert verdict.passed
    assert verdict.reasons[1:] == (
        "mean-class accuracy 0.750 against 0.750 now serving",
        "tail accuracy 0.500 against 0.500 now serving",
    )


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        ({"mean_class": 0.625, "tail": 0.5}, "mean-class accuracy 0.625 is more than 0.000 below the serving model's 0.750"),
        ({"mean_class": 0.75, "tail": 0.25}, "tail accuracy 0.250 is more than 0.125 below the serving model's 0.500"),
        ({"mean_class": None, "tail": 0.5}, "mean-class accuracy cannot be measured"),
        ({"mean_class": 0.75, "tail": None}, "tail accuracy cannot be measured"),
    ],
)  # fmt: skip
def test_each_refusal_gives_its_reason_alone(new: dict[str, float | None], reason: str) -> None:
    verdict = ask(new, mean_class=0.0, tail=0.125)
    assert not verdict.passed
    assert len(verdict.reasons) == 1
    assert verdict.reasons[0].startswith(reason)


def test_all_reasons_of_a_refusal_are_told() -> None:
    assert len(ask({"mean_class": 0.0, "tail": 0.0}, parity={"different_ids": 1, "probability": 0.1}).reasons) == 3


def test_a_serving_model_that_cannot_be_measured_is_no_permission() -> None:
    assert not ask({"mean_class": 1.0, "tail": 1.0}, {"mean_class": None, "tail": None}).passed


# Eighths are exact in binary, so these are the boundaries themselves.
@pytest.mark.parametrize(
    ("after", "allowed", "passed"),
    [
        (0.625, 0.125, True),
        (0.6249, 0.125, False),
        (0.75, -0.125, False),
        (0.8749, -0.125, False),
        (0.875, -0.125, True),
    ],
)
def test_exactly_the_allowance_is_allowed(after: float, allowed: float, passed: bool) -> None:
    assert ask({"mean_class": after, "tail": 0.5}, mean_class=allowed, tail=0.0).passed is passed
    assert ask({"mean_class": 0.75, "tail": after - 0.25}, mean_class=0.0, tail=allowed).passed is passed
