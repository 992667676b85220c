"""Estimates of the stages of a retraining: sums of what each has to touch, told beside what a run took."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from flows import plan
from flows.errors import InputError
from flows.run import estimate
from flows.run.estimate import Counts, Machine, advice, compared, longest, stages
from flows.run.history import RunStep
from flows.run.plans import against_plan, plan_file
from flows.workspace import Workspace
from models.recipe.config import Recipe, from_dict
from models.training import classifiers

COUNTS = Counts(photos=1000, classes=50, train=800, val=80, test=120)
PACE = {
    "drawn_s": 0.01,
    "scored_s": 0.002,
    "shown_s": 0.003,
    "asked_s": 0.004,
    "product_s": 1e-4,
    "pass_s": 1e-5,
    "feature_s": 0.0,
    "parameters": 10**6,
    "peak_bytes": 10**9,
    "measured_s": 3.0,
}
MACHINE = Machine(side_by_side=1, start_s=10.0)


def recipe(**tables: object) -> Recipe:
    return from_dict({"name": "r", "members": [{"backbone": "test_resnet"}], "train": {"epochs": 5}} | tables)


def of(step: str, settings: Recipe, *, machine: Machine = MACHINE, counts: Counts = COUNTS) -> estimate.Stage:
    found = stages(settings, counts, [PACE] * len(settings.members), machine)
    (stage,) = (each for each in found if each.step == step)
    return stage


def test_a_training_draws_its_photos_and_scores_those_held_out() -> None:
    once = of("train member", recipe(clean={"rounds": 0}))
    assert once.each_s == pytest.approx(10 + 5 * 800 * 0.01 + 200 * 0.002)
    assert once.times == 1
    assert of("train member", recipe()).seconds == pytest.approx(2 * once.seconds), (
        "cleaned labels are learnt once more"
    )
    short = of("train member", recipe(clean={"rounds": 0}, train={"epochs": 5, "epoch_length": 100}))
    assert short.each_s == pytest.approx(10 + 5 * 100 * 0.01 + 200 * 0.002)


def test_folds_share_the_photos_and_the_machine() -> None:
    clean = {"folds": 4, "epochs": 2, "rule": "log_margin"}
    alone = of("score fold", recipe(clean=clean))
    assert alone.times == 4
    assert alone.each_s == pytest.approx(10 + 2 * 600 * 0.01 + (200 + 80) * 0.002)
    assert alone.seconds == pytest.approx(4 * alone.each_s)
    assert of("score fold", recipe(clean=clean), machine=Machine(3, 10.0)).seconds == pytest.approx(2 * alone.each_s)
    assert of("score fold", recipe(clean=clean | {"rounds": 2})).times == 8


def test_members_of_one_time_run_side_by_side() -> None:
    two = recipe(members=[{"backbone": "test_resnet"}, {"backbone": "test_resnet", "data": "delivered"}])
    found = of("train member", two, machine=Machine(2, 10.0))
    assert found.times == 3
    assert found.seconds == pytest.approx(2 * found.each_s), "both once, and then the one that learns cleaned labels"


@pytest.mark.parametrize("step", ["calibrate", "balance member"])
def test_what_a_part_of_the_photos_decides_stops_growing(step: str) -> None:
    few, many, more = (
        of(step, recipe(balance={"method": "tau"}), counts=dataclasses.replace(COUNTS, val=number)).seconds
        for number in (80, 10**6, 2 * 10**6)
    )
    assert few < many
    assert (more == many) == (step == "calibrate")


def test_neighbours_of_many_photos_cost_no_more_than_those_of_a_few() -> None:
    most, many, more = (
        of(
            "clean, round", recipe(), counts=dataclasses.replace(COUNTS, classes=50_030, train=5 * number, val=0)
        ).seconds
        for number in (estimate.MOST, 5 * estimate.MOST, 10 * estimate.MOST)
    )
    assert many < 10 * most
    assert more < 2 * many, "candidates alone: time grows with the photos"


def test_cards_share_the_answers_of_graphs() -> None:
    many = dataclasses.replace(COUNTS, train=10**6, test=10**5, val=10**5)
    tried = {"enlarge": [1.1, 1.2], "crops": 10}
    for step in ("export", "choose crops", "calibrate"):
        one, eight = (of(step, recipe(export=tried), counts=many, machine=Machine(1, 10.0, cards)) for cards in (1, 8))
        assert eight.seconds < one.seconds / 7, step
    export = of("export", recipe(export=tried), counts=many)
    first, later = (of("gate, report and publish", recipe(export=tried), counts=many, machine=Machine(1, 10.0, 1, number))
                    for number in (0, many.test))  # fmt: skip
    assert later.seconds - first.seconds == pytest.approx(export.seconds, rel=0.01), "the current model answers as well"


def test_numbers_are_those_of_the_steps() -> None:
    from models.cleaning.rules import Posterior
    from models.export import calibrate

    assert classifiers.FITTED == estimate.FITTED == calibrate.SELECTED
    assert (calibrate.TUNED, calibrate.FITTED) == (estimate.TUNED, estimate.SEEN)
    assert len(classifiers.SCALES) == estimate.SCALES
    assert Posterior().most == estimate.MOST


def test_the_longest_stage_is_told_with_a_way_to_shorten_it() -> None:
    found = stages(recipe(), COUNTS, [PACE], MACHINE)
    most = longest(found)
    assert most.seconds == max(each.seconds for each in found)
    assert "CLEANSHELF_DASK" in advice(of("score fold", recipe()), recipe(), MACHINE)
    assert "clean.folds=2" in advice(of("score fold", recipe()), recipe(), MACHINE)
    frozen = recipe(train={"backbone_lr_scale": 0.0})
    assert "frozen" not in advice(of("train member", frozen), frozen, MACHINE)


def test_a_stage_that_memory_cannot_hold_is_refused_with_both_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    members = recipe(members=[{"backbone": "test_resnet", "seed": seed} for seed in (1, 2)])
    found = stages(members, COUNTS, [PACE] * 2, Machine(side_by_side=2, start_s=10.0))
    others = [each for each in found if each.step not in ("train member", "score fold")]
    balance = next(each.peak_bytes for each in others if each.step == "balance member")
    most = max(2 * balance, *(each.peak_bytes for each in others))
    monkeypatch.setattr(plan, "available_bytes", lambda: most)
    plan.require_memory(found, 2)
    monkeypatch.setattr(plan, "available_bytes", lambda: 2 * balance - 1)
    with pytest.raises(InputError, match=r"balance member: it needs about 2\.0 GB of memory, .* CLEANSHELF_PARALLEL=1"):
        plan.require_memory([each for each in found if each.step == "balance member"], 2)
    plan.require_memory([dataclasses.replace(each, is_there=True) for each in found], 2)
    monkeypatch.setattr(plan, "available_bytes", lambda: 10**8)
    with pytest.raises(InputError, match=r"about [\d.]+ GB of memory, and this machine has 0\.1 GB left; free some"):
        plan.require_memory(found, 1)
    plan.require_memory([each for each in found if each not in others], 2)


def test_a_plan_is_compared_with_what_was_computed() -> None:
    planned = [each.to_dict() for each in stages(recipe(), COUNTS, [PACE], MACHINE)]
    took = {"train member 0": 120.0, "score fold 0": 40.0, "score fold 1": 40.0, "score fold 2": 40.0}
    rows = {row["stage"]: row for row in compared(planned, took)}
    assert rows.keys() == {"train member", "score fold"}
    assert rows["train member"]["took s"] == 120.0
    assert rows["score fold"]["took s"] == 120.0
    assert rows["train member"]["off by %"] == round(100 * (rows["train member"]["planned s"] / 120 - 1))


def test_reused_steps_do_not_count(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    steps = [
        RunStep("train member 0", "finished", "", seconds=90.0, is_reused=False),
        RunStep("export", "finished", "", seconds=0.1, is_reused=True),
    ]
    assert against_plan(workspace, "a" * 64, recipe(), steps) == [], "there is no plan"
    file = plan_file(workspace, "a" * 64, recipe())
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"stages": [each.to_dict() for each in stages(recipe(), COUNTS, [PACE], MACHINE)]}))
    assert [row["stage"] for row in against_plan(workspace, "a" * 64, recipe(), steps)] == ["train member"]
    file.write_text("{")
    assert against_plan(workspace, "a" * 64, recipe(), steps) == [], "a damaged plan is none"
