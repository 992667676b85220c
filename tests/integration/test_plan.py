"""A plan before a retraining: measured on the data and the machine, and refused where nothing would fit."""

from __future__ import annotations

import dataclasses
import json

import pytest

from flows.errors import InputError
from flows.ingest import ingest
from flows.plan import plan
from flows.run.plans import plan_file
from flows.steps import learn
from flows.workspace import Workspace
from models.recipe.config import Train, load_recipe
from tests.deliveries import deliver

pytestmark = [pytest.mark.dvc]
RECIPE = load_recipe("smoke", overrides=("train.batch_size=64",))  # more than there are train photos


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("shop")
    made = Workspace.init(folder / "workspace")
    ingest(made, deliver(folder / "delivery", {"milk": 30, "tea": 30}, side=32))
    return made


def test_a_plan_measures_members_and_is_kept(workspace: Workspace) -> None:
    made = plan(workspace, RECIPE)
    by_step = {stage.step: stage for stage in made.stages}
    assert list(by_step)[:2] == ["train member", "score fold"]
    assert by_step["train member"].times == 4, "two members, before and after cleaning"
    assert by_step["score fold"].times == 2
    assert all(stage.seconds > 0 and stage.peak_bytes > 1e8 for stage in made.stages)
    assert not any(stage.is_there for stage in made.stages)
    assert made.counts.classes == 2
    assert made.counts.photos == 60
    assert made.longest in by_step
    assert not list(workspace.runs.glob("2*")), "nothing was started"
    kept = json.loads(plan_file(workspace, made.data_version, RECIPE).read_bytes())
    assert kept == json.loads(json.dumps(made.to_dict()))


def test_what_cannot_fit_is_refused_before_anything_is_measured(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learn, "present_bytes", lambda data: -(10**18))
    with pytest.raises(InputError, match=r"take at least [\d.]+ GB, and the disk of .* has"):
        plan(workspace, dataclasses.replace(RECIPE, train=Train(epochs=1)))
