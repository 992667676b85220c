"""A step is kept if it gains on the selection photos; its figures are recorded either way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flows.report.terminal import print_evidence
from flows.run.run import Run
from flows.steps.selection import Selection, decisions_of, in_words, keep_gains, learnt_from
from flows.workspace import Workspace
from models.data.manifest import INDEX, write_table
from models.evaluation.scores import Scores, write_scores
from models.recipe.config import Recipe, from_dict

NUM, CLASSES = 120, ["a", "b", "c"]
IDS = [f"p{i:03}" for i in range(NUM)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """120 validation photos of three classes, of which cleaning doubts every fourth label; one train photo a class."""
    ids, labels = [*IDS, "t0", "t1", "t2"], [CLASSES[i % 3] for i in range(NUM)] + CLASSES
    n, folder = len(ids), tmp_path / "data"
    folder.mkdir()
    index = {field.name: ["x"] * n if str(field.type) == "string" else [1] * n for field in INDEX}
    write_table(folder, index | {"id": ids}, name="index")
    columns = {
        "id": ids,
        "given_label": labels,
        "label": labels,
        "split": ["val"] * NUM + ["train"] * 3,
        "kept": [True] * n,
    }
    score = [0.4 if i % 4 == 0 else 0.6 for i in range(NUM)] + [None] * 3
    judged = {"decision": [""] * n, "score": score, "round": [1] * n, "scored_by": ["fold-0"] * n}
    write_table(folder, columns | judged, name="labels")
    return folder


def network(folder: Path, right: np.ndarray) -> Path:
    """A result in which these of the validation photos are recognised."""
    folder.mkdir()
    target = np.arange(NUM) % 3
    first = np.where(right, target, (target + 1) % 3)
    top = np.stack([first, (first + 1) % 3, (first + 2) % 3], 1)
    probs = np.tile(np.float32([0.6, 0.3, 0.1]), (NUM, 1))
    write_scores(Scores(np.array(IDS), target, probs[:, 0], top, probs), folder / "scores.parquet")
    return folder


def make_run(tmp_path: Path, **proof: object) -> Run:
    recipe: Recipe = from_dict({"name": "any", "members": [{}, {}], "proof": proof})
    run = Run(Workspace(tmp_path / "shop"), recipe, id="one")
    run.open({})
    return run


def test_a_member_keeps_what_gained_and_drops_what_did_not(data: Path, tmp_path: Path) -> None:
    run, hard = make_run(tmp_path), np.arange(NUM) % 5 == 1
    poor, good = network(tmp_path / "poor", ~hard & (np.arange(NUM) % 2 == 0)), network(tmp_path / "good", ~hard)
    kept = keep_gains.fn(run, data, "cleaning", Selection([poor, good]), [good, poor])
    assert kept.networks == [good, good]
    gained, lost = kept.decisions
    assert (gained["step"], gained["member"], gained["stays"], lost["stays"]) == ("cleaning", 1, True, False)
    assert gained["photos"] == 120, "all of them, as delivered"
    assert gained["believed"]["photos"] == 90, "those whose label it does not doubt, so that its bias shows"
    assert gained["after"] - gained["before"] == pytest.approx(lost["before"] - lost["after"])
    assert 0 < gained["low"] < gained["after"] - gained["before"]
    assert learnt_from(kept, [good, poor], [data, data], before=tmp_path) == [data, tmp_path], (
        "the second one's is dropped"
    )


def test_trusted_photos_decide_alone(data: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("\n".join(IDS[:12]))
    run = make_run(tmp_path, photos=str(tmp_path / "ids.txt"))
    late = np.arange(NUM) >= 12  # recognises none of the trusted photos
    before = Selection([network(tmp_path / "none", ~late)])
    (found,) = keep_gains.fn(run, data, "cleaning", before, [network(tmp_path / "late", late)]).decisions
    assert (found["photos"], found["before"], found["after"], found["stays"]) == (12, 1.0, 0.0, False)
    assert "believed" not in found


def test_a_recipe_may_keep_every_step_untested(data: Path, tmp_path: Path) -> None:
    run, nothing = make_run(tmp_path, confidence=0.0), np.zeros(NUM, bool)
    early, late = network(tmp_path / "early", ~nothing), network(tmp_path / "late", nothing)
    assert keep_gains.fn(run, data, "cleaning", Selection([early]), [late]).networks == [late]


def test_decisions_come_in_the_order_of_the_steps(data: Path, tmp_path: Path) -> None:
    """Also of steps whose names sort otherwise."""
    run, one = make_run(tmp_path), network(tmp_path / "one", np.ones(NUM, bool))
    selection = Selection([one])
    for name in ("warm-up", "cleaning", "fine-tuning"):
        selection = keep_gains.fn(run, data, name, selection, [one])
    assert [each["step"] for each in selection.decisions] == ["warm-up", "cleaning", "fine-tuning"]


def test_all_decisions_stand_in_the_report(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, everything = make_run(tmp_path), np.ones(NUM, bool)
    one = network(tmp_path / "one", everything)
    selection = keep_gains.fn(run, data, "cleaning", Selection([one]), [one])
    (one / "balance.json").write_text(json.dumps({"chosen": {"method": "ncm"}, "gain": {
        "before": None, "after": None, "low": None, "photos": 0, "classes": 0, "stays": True}}))  # fmt: skip
    gained = {"before": 0.5, "after": 0.75, "low": 0.1, "photos": 90, "classes": 3, "stays": True}
    (one / "ensemble.json").write_text(json.dumps({"weights": [1.0]}))
    (one / "crops.json").write_text(json.dumps({"crops": 10, "enlarge": 1.25, "gain": gained}))
    found = decisions_of(selection, [one], one, one)
    assert [(each["step"], each["member"]) for each in found] == [("cleaning", 1), ("balance", 1), ("crops", None)], (
        "equal weights set by the recipe are not a decision"
    )
    student = {"step": "distil", "member": None, "method": "resnet10t", **gained}
    steps = [each["step"] for each in decisions_of(selection, [one], one, one, student=student)]
    assert steps == ["cleaning", "balance", "distil", "crops"]
    assert in_words(found[0]).endswith("on 120 photos: dropped")
    assert in_words(found[1]) == "kept as the recipe says, because there are no validation photos to measure it on"
    print_evidence(found)
    assert "balance: ncm" in capsys.readouterr().out
