"""The gates: which graphs may be served."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flows.gate.gates import GateInput, Hits, LeftOut, examples, judge, wilson
from flows.gate.verdict import Finding, Verdict
from flows.steps.gate import left_out as counted_as_left_out
from models.recipe.config import Gate
from tests.unit.models.test_label_decisions import manifest

EXACT = {"different_ids": 0, "probability": 3e-8}
LABELS = np.array(["ale", "beer", "cider", "milk", "tea", "wine"], object)  # two of each third
THIRD = np.array([0, 0, 1, 1, 2, 2])


def hits(*per_class: int, of: int) -> NDArray[np.bool_]:
    """(6 * of,) True for the first photos of each class, as many as `per_class` says."""
    return np.concatenate([np.arange(of) < right for right in per_class])


def answers(new: NDArray[np.bool_], serving: NDArray[np.bool_] | None) -> Hits:
    photo = np.array([f"p{number}" for number in range(len(new))], object)
    return Hits(photo, np.repeat(np.arange(6), len(new) // 6), new, serving, LABELS, THIRD)


def verdict_on(
    found: Hits, parity: dict[str, float] = EXACT, cleaning: LeftOut | None = None, **allowed: float
) -> Verdict:
    return judge(GateInput(parity, found, cleaning), settings=Gate(**allowed), graph_sha256="abc", against=7)


def finding_of(verdict: Verdict, gate: str) -> Finding:
    [found] = [finding for finding in verdict.findings if finding.gate == gate]
    return found


ALIKE = answers(hits(8, 8, 8, 8, 8, 8, of=10), hits(8, 8, 8, 8, 8, 8, of=10))
WORSE_TAIL = answers(hits(40, 40, 40, 40, 20, 20, of=40), hits(40, 40, 40, 40, 35, 35, of=40))


def test_the_first_model_has_nothing_to_be_worse_than() -> None:
    verdict = verdict_on(answers(hits(1, 1, 1, 1, 1, 1, of=4), None))
    assert verdict.passed
    assert "no current model yet" in verdict.reasons[1]
    assert (verdict.graph_sha256, verdict.against) == ("abc", 7)
    assert [finding.gate for finding in verdict.findings] == ["parity", "class_floor"]


@pytest.mark.parametrize("found", [ALIKE, replace(ALIKE, serving=None)])
def test_a_graph_that_differs_from_torch_is_refused(found: Hits) -> None:
    verdict = verdict_on(found, {"different_ids": 3, "probability": 0.2})
    assert not verdict.passed
    assert verdict.reasons == ("parity: 3 answers differ from torch",)


def test_a_refusal_names_what_the_graph_was_compared_with() -> None:
    evidence = GateInput({"different_ids": 1, "probability": 0.2}, ALIKE, reference="version 7")
    verdict = judge(evidence, settings=Gate(), graph_sha256="abc")
    assert verdict.reasons == ("parity: 1 answer differs from version 7",)


def test_an_equal_model_passes_with_all_figures() -> None:
    verdict = verdict_on(ALIKE)
    assert verdict.passed
    assert verdict.reasons[1:5] == (
        "mean-class accuracy 0.800 against the current model's 0.800 (+0.000 to +0.000)",
        "head accuracy 0.800 against the current model's 0.800 (+0.000 to +0.000)",
        "middle accuracy 0.800 against the current model's 0.800 (+0.000 to +0.000)",
        "tail accuracy 0.800 against the current model's 0.800 (+0.000 to +0.000)",
    )


def test_a_fall_of_the_tail_is_refused_whatever_other_classes_gain() -> None:
    verdict = verdict_on(WORSE_TAIL, mean_class=1)
    assert [finding.gate for finding in verdict.findings if not finding.passed] == ["tail"]
    [reason] = verdict.reasons
    assert reason.startswith("tail accuracy 0.500 is more than 0.020 below the current model's 0.875 (-0.")
    tail = finding_of(verdict, "tail")
    assert (tail.before, tail.after, tail.allowed) == (0.875, 0.5, 0.02)
    assert tail.low is not None
    assert tail.high is not None
    assert tail.low < 0.5 - 0.875 < tail.high < -0.02


def test_each_third_has_its_own_allowance() -> None:
    for place, name in enumerate(("head", "middle", "tail")):
        falls = [30 if third == place else 40 for third in THIRD]
        verdict = verdict_on(answers(hits(*falls, of=40), hits(*[40] * 6, of=40)), mean_class=1)
        assert [finding.gate for finding in verdict.findings if not finding.passed] == [name]
        assert verdict_on(answers(hits(*falls, of=40), hits(*[40] * 6, of=40)), mean_class=1, **{name: 0.25}).passed


def test_what_may_be_chance_passes() -> None:
    """The tail loses two of its twelve photos and gains one: the accuracy is below, its bound is not."""
    serving = hits(4, 4, 4, 4, 4, 4, of=6)
    new = serving.copy()
    new[[24, 30]], new[29] = False, True
    tail = finding_of(verdict_on(answers(new, serving)), "tail")
    assert tail.passed
    assert tail.after is not None
    assert tail.before is not None
    assert tail.after < tail.before - tail.allowed
    assert not finding_of(verdict_on(answers(new, serving), confidence=0.5), "tail").passed


def test_a_gain_can_be_demanded() -> None:
    assert "mean-class accuracy 0.800 is more than -0.100 below" in verdict_on(ALIKE, mean_class=-0.1).reasons[0]
    better = answers(hits(9, 9, 9, 9, 9, 9, of=10), hits(8, 8, 8, 8, 8, 8, of=10))
    assert verdict_on(better, mean_class=-0.1).passed


photos = st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans()), min_size=1, max_size=40)


def hits_of(drawn: list[tuple[int, bool, bool]]) -> Hits:
    target, new, serving = (np.array(column) for column in zip(*drawn, strict=True))
    return Hits(target.astype(str).astype(object), target, new, serving, LABELS, THIRD)


@settings(max_examples=25, deadline=None)
@given(photos, st.floats(0.5, 0.98), st.floats(-0.5, 0.5))
def test_only_a_fall_is_refused_and_more_certainty_refuses_less(
    drawn: list[tuple[int, bool, bool]], confidence: float, allowed: float
) -> None:
    for finding in verdict_on(hits_of(drawn), confidence=confidence, mean_class=allowed, tail=allowed).findings:
        if finding.gate not in ("mean_class", "tail") or finding.after is None or finding.before is None:
            continue
        laxer = finding_of(
            verdict_on(hits_of(drawn), confidence=confidence, mean_class=allowed + 0.1, tail=allowed + 0.1),
            finding.gate,
        )
        more_certain = finding_of(
            verdict_on(hits_of(drawn), confidence=confidence + 0.01, mean_class=allowed, tail=allowed), finding.gate
        )
        if finding.passed:
            assert laxer.passed
            assert more_certain.passed
        else:
            assert finding.after < finding.before - allowed + 1e-6


@settings(max_examples=25, deadline=None)
@given(photos)
def test_a_model_that_recognises_a_superset_is_never_worse(drawn: list[tuple[int, bool, bool]]) -> None:
    found = hits_of([(target, new or serving, serving) for target, new, serving in drawn])
    verdict = verdict_on(found, head=0, middle=0, tail=0, confidence=0.5, class_floor=1)
    measured = [finding for finding in verdict.findings if finding.after is not None and finding.gate != "class_floor"]
    assert all(finding.passed for finding in measured)


def test_thirds_without_photos_are_skipped_but_the_tail_is_required() -> None:
    head_only = ALIKE.target < 2
    verdict = verdict_on(
        replace(
            ALIKE,
            photo=ALIKE.photo[head_only],
            target=ALIKE.target[head_only],
            new=ALIKE.new[head_only],
            serving=ALIKE.new[head_only],
        )
    )
    assert [finding.gate for finding in verdict.findings] == ["parity", "mean_class", "head", "tail", "class_floor"]
    [reason] = verdict.reasons
    assert reason.startswith("tail accuracy cannot be measured: ")


def test_without_test_photos_nothing_is_proven() -> None:
    none = np.empty(0, np.int64)
    verdict = verdict_on(Hits(none.astype(object), none, none.astype(bool), none.astype(bool), LABELS, THIRD))
    assert [finding.gate for finding in verdict.findings if not finding.passed] == ["mean_class", "tail"]


def test_a_refusal_has_all_its_reasons() -> None:
    assert len(verdict_on(WORSE_TAIL, {"different_ids": 1, "probability": 0.1}).reasons) == 3


def test_a_lost_class_is_named() -> None:
    lost = answers(hits(60, 60, 60, 60, 60, 0, of=60), hits(60, 60, 60, 60, 60, 20, of=60))
    verdict = verdict_on(lost, mean_class=1, tail=1)
    assert verdict.reasons == ("recognised less often than 0.10: wine (0 of 60 photos)",)
    floor = finding_of(verdict, "class_floor")
    assert (floor.after, floor.before, floor.allowed) == (0, pytest.approx(1 / 3), 0.1)
    assert floor.high is not None
    assert floor.high < 0.1
    assert verdict_on(lost, mean_class=1, tail=1, class_floor=0).passed


def test_few_photos_do_not_prove_a_lost_class() -> None:
    assert verdict_on(answers(hits(9, 9, 9, 9, 9, 0, of=9), hits(9, 9, 9, 9, 9, 3, of=9)), mean_class=1, tail=1).passed


def test_a_class_that_the_current_model_misses_too_does_not_refuse_a_graph() -> None:
    never = hits(60, 60, 60, 60, 60, 0, of=60)
    assert verdict_on(answers(never, never)).passed
    assert not verdict_on(answers(never, None)).passed


def test_many_lost_classes_are_counted() -> None:
    reasons = verdict_on(answers(hits(0, 0, 0, 0, 0, 0, of=60), None)).reasons
    assert "tea (0 of 60 photos) and 1 more" in reasons[0]


def left_out(*photos: int, given: int) -> LeftOut:
    target = np.repeat(np.arange(6), photos)
    return LeftOut(LABELS, np.full(6, given), np.array([f"p{i}" for i in range(len(target))], object), target)


def test_a_class_with_many_photos_left_out_is_named_with_photos_to_look_at() -> None:
    verdict = verdict_on(ALIKE, cleaning=left_out(10, 10, 10, 10, 10, 80, given=100))
    assert verdict.reasons == ("cleaning left out more than 50% of wine (80 of 100 photos); check their labels",)
    assert finding_of(verdict, "decided_away").photos == ("p50", "p51", "p52", "p53", "p54"), (
        "the most doubtful of wine"
    )
    assert verdict_on(ALIKE, cleaning=left_out(10, 10, 10, 10, 10, 80, given=100), decided_away=0.9).passed
    assert verdict_on(ALIKE, cleaning=left_out(1, 1, 1, 1, 1, 6, given=10)).passed, "few photos prove nothing"
    assert verdict_on(ALIKE, cleaning=left_out(0, 0, 0, 0, 0, 0, given=0)).passed


def test_only_photos_that_are_not_learnt_under_their_given_label_count_as_left_out() -> None:
    photos = manifest(["tea"] * 6 + ["ale"] * 3, ["train"] * 8 + ["val"])
    photos.decision[:] = ["dropped", "doubted", "relabelled", "dropped", "checked", "", "", "near-test", "dropped"]
    photos.kept[:] = photos.decision != "dropped"
    photos.label[2] = "ale"
    photos.score[:] = [0.3, 0.0, 0.2, 0.1, np.nan, 0.9, 0.8, np.nan, 0.1]
    found = counted_as_left_out(photos)
    assert (found.labels.tolist(), found.given.tolist()) == (["ale", "tea"], [1, 6])
    assert (found.photo.tolist(), found.target.tolist()) == (["p3", "p2", "p0"], [1, 1, 1]), "the most doubtful first"


def test_photos_to_look_at_come_from_as_many_classes_as_possible() -> None:
    photo, target = np.array(list("abcdefg"), object), np.array([2, 2, 2, 0, 0, 1, 1])
    assert examples(photo, target, np.array([1, 1, 1, 1, 1, 0, 0], bool)) == ("d", "a", "e", "b", "c")
    assert examples(photo, target, np.zeros(7, bool)) == ()


def test_a_refusal_names_photos_that_the_current_model_recognises_and_a_pass_names_none() -> None:
    fall = finding_of(verdict_on(WORSE_TAIL), "tail").photos
    assert fall == ("p180", "p220", "p181", "p221", "p182"), (
        "recognised by the current model only, of both classes in turn"
    )
    lost = finding_of(verdict_on(answers(hits(60, 60, 60, 60, 60, 1, of=60), None)), "class_floor").photos
    assert lost == ("p301", "p302", "p303", "p304", "p305")
    assert all(not finding.photos for finding in verdict_on(ALIKE).findings)


def test_a_graph_has_to_keep_the_latency_budget() -> None:
    for ms, passed in (((12.0, 9.0), False), ((8.0, 9.0), True), ((10.0,), True)):
        evidence = GateInput(EXACT, ALIKE, ms=ms)
        verdict = judge(evidence, settings=Gate(latency_ms=10), graph_sha256="abc")
        assert verdict.passed is passed
        assert "ms per photo" in verdict.reasons[-1]


def test_the_bounds_are_those_of_wilson() -> None:
    """The published 95 % intervals of 0 of 10 and of 8 of 10."""
    for right, bounds in ((0, (0.0, 0.2775)), (8, (0.4902, 0.9433))):
        low, high = wilson(np.array([right]), np.array([10]), confidence=0.975)
        assert (low[0], high[0]) == pytest.approx(bounds, abs=1e-4)
    one, many = (wilson(np.zeros(count), np.full(count, 10), confidence=0.8)[1][0] for count in (1, 100))
    assert one < many, "among many classes one is at zero by chance"


def test_an_override_records_user_reason_and_gates_and_parity_allows_none() -> None:
    refused = verdict_on(WORSE_TAIL)
    meant = refused.despite("half of these are discontinued", by="Ada <ada@shop>")
    assert (refused.may_serve, meant.passed, meant.may_serve) == (False, False, True)
    assert meant.override is not None
    assert asdict(meant.override) == {
        "by": "Ada <ada@shop>", "reason": "half of these are discontinued", "gates": ["mean_class", "tail"]
    }  # fmt: skip
    assert meant.explanation == [*refused.reasons, "overridden by Ada <ada@shop>: half of these are discontinued"]
    broken = verdict_on(WORSE_TAIL, {"different_ids": 1, "probability": 0.1}).despite("never mind", by="Ada")
    assert not broken.may_serve
    assert broken.reasons[-1] == "parity cannot be overridden"
    assert verdict_on(ALIKE).despite("to be sure", by="Ada").override is None, "there is nothing to override"


def test_a_lineage_keeps_reasons_and_override_and_another_override_keeps_its_gates() -> None:
    first = verdict_on(WORSE_TAIL).despite("so be it", by="Ada")
    lineage = {
        "verdict": list(first.reasons),
        "override": asdict(first)["override"],
        "graph_sha256": "abc",
        "parent": 3,
    }
    assert first.is_that_of(lineage)
    assert not verdict_on(WORSE_TAIL).is_that_of(lineage)
    kept = Verdict.of_lineage(lineage)
    assert (kept.passed, kept.explanation, kept.against) == (False, first.explanation, 3)
    again = kept.despite("the buyer agreed", by="Bob")
    assert asdict(again)["override"] == {"by": "Bob", "reason": "the buyer agreed", "gates": ["mean_class", "tail"]}
    assert Verdict.of_lineage({"verdict": ["good"], "graph_sha256": "abc"}).passed, "no override, so it passed"


def test_a_verdict_survives_its_file() -> None:
    for verdict in (verdict_on(ALIKE), verdict_on(WORSE_TAIL), verdict_on(WORSE_TAIL).despite("so be it", by="Ada")):
        assert Verdict.of(json.loads(json.dumps(asdict(verdict), allow_nan=False))) == verdict
    assert Verdict.of({"passed": True, "reasons": ["parity"], "graph_sha256": "abc"}).may_serve, (
        "written by an earlier release"
    )


TRAINED = left_out(0, 0, 0, 0, 0, 0, given=10)


def above_chance(new: NDArray[np.bool_], serving: NDArray[np.bool_] | None = None, **allowed: float) -> Finding:
    return finding_of(verdict_on(answers(new, serving), cleaning=TRAINED, **allowed), "above_chance")


def test_a_first_model_that_recognises_nothing_is_refused() -> None:
    verdict = verdict_on(answers(hits(0, 0, 0, 0, 0, 0, of=4), None), cleaning=TRAINED, class_floor=0)
    assert not verdict.passed
    [reason] = verdict.reasons
    assert reason.startswith("top-1 accuracy 0.000, at least 0.000 beyond doubt, against 0.167 by guessing: not proven")


def test_a_model_that_always_answers_the_most_frequent_class_is_refused() -> None:
    target = np.repeat([0, 1, 2], [60, 20, 20])
    found = Hits(target.astype(str), target, target == 0, None, LABELS, THIRD)
    finding = finding_of(verdict_on(found, cleaning=TRAINED, class_floor=0), "above_chance")
    assert (finding.passed, finding.after, finding.before) == (False, 0.6, 0.6)
    better = replace(found, new=(target == 0) | (target == 1))
    assert finding_of(verdict_on(better, cleaning=TRAINED), "above_chance").passed


def test_the_bar_also_holds_beside_a_current_model() -> None:
    nothing = hits(1, 1, 1, 1, 1, 1, of=10)
    assert not above_chance(nothing, nothing).passed
    assert above_chance(hits(4, 4, 4, 4, 4, 4, of=10), nothing).passed


def test_a_few_photos_that_are_all_recognised_prove_a_model() -> None:
    assert above_chance(hits(1, 1, 1, 1, 1, 1, of=1)).passed


def test_a_larger_margin_or_confidence_asks_for_more() -> None:
    found = hits(3, 3, 3, 3, 3, 3, of=10)
    assert above_chance(found).passed
    assert not above_chance(found, above_chance=0.1).passed
    assert not above_chance(found, confidence=0.999).passed


def test_the_bar_can_be_switched_off() -> None:
    assert above_chance(hits(0, 0, 0, 0, 0, 0, of=4), above_chance=-1).passed


def test_without_test_photos_a_first_model_is_not_proven() -> None:
    none = np.empty(0, np.int64)
    verdict = verdict_on(Hits(none.astype(str), none, none.astype(bool), None, LABELS, THIRD), cleaning=TRAINED)
    assert [finding.gate for finding in verdict.findings if not finding.passed] == ["above_chance"]
