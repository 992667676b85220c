"""The real flow with members that differ and are fine-tuned and weighted, and with a choice of crops."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flows.ingest import ingest
from flows.registry.repository import repository
from flows.retrain import retrain
from flows.workspace import Workspace
from models.export.patch import read_metadata
from models.recipe.config import load_recipe
from serving.server.environment import Environment
from tests.integration.test_retrain import ANY, QUICK, pytestmark, stages, write_delivery

__all__ = ["pytestmark"]  # the same services are needed

# Members differ, are fine-tuned at a larger size and weighted, and crops are chosen; every step is kept.
ALL_STEPS = ("members.1.data=delivered", "members.1.loss.name=ce", "members.1.train.sampling_power=0.5", "finetune.epochs=1",
         "finetune.best_photos=6", "ensemble.method=greedy", "export.enlarge=[1.5, 1.0]", "export.crops=10",
         "proof.confidence=0")  # fmt: skip


@pytest.mark.slow  # its parts have tests of their own
def test_members_that_differ_are_fine_tuned_and_weighted_and_crops_are_chosen(
    tmp_path: Path, prefect_server: None, triton_environment: Environment
) -> None:
    workspace, recipe = Workspace.init(tmp_path / "shop"), load_recipe("smoke", overrides=(*QUICK, *ANY, *ALL_STEPS))
    ingest(workspace, write_delivery(tmp_path / "delivery"))
    report = retrain(workspace, recipe)
    assert report.model_version == 1
    done = stages(workspace)
    kinds = sorted(name.rsplit("-", 1)[0] for name in done)
    assert kinds == [
        *("balance-1-test_resnet", "balance-2-test_byobnet", "calibrate", "crops", "ensemble", "export"),
        *("finetune-1-test_resnet", "finetune-2-test_byobnet", "fold-0", "fold-1"),
        *("train-1-test_resnet", "train-1-test_resnet", "train-2-test_byobnet"),
    ], "the second member is trained once, on labels as delivered"
    folder = {name.split("-")[0]: workspace.runs / "stages" / name for name in done}
    weights = json.loads((folder["ensemble"] / "ensemble.json").read_text())["weights"]
    assert sum(weights) == pytest.approx(1)
    crops = json.loads((folder["crops"] / "crops.json").read_text())
    assert [(setting["crops"], setting["enlarge"]) for setting in crops["tried"]] == [(10, 1.0), (10, 1.5), (1, 1.5)]
    assert [row.step for row in report.steps[1:4]] == [
        "one network, after cleaning",
        "one network, at high resolution",
        "one network, re-balanced",
    ]
    assert report.steps[4].step == f"ensemble of {np.count_nonzero(weights)}"
    steps = [(each["step"], each["member"]) for each in report.evidence]
    assert steps == [
        *(("cleaning", 1), ("cleaning", 2), ("fine-tuning", 1), ("fine-tuning", 2)),
        *(("balance", 1), ("balance", 2), ("ensemble", None), ("crops", None)),
    ]

    card = read_metadata(repository(workspace).path(1) / "model.onnx")
    assert json.loads(card["views"]) == {"crops": crops["crops"], "enlarge": crops["enlarge"]}
    members = json.loads(card["members"])
    assert [member["weight"] for member in members] == pytest.approx([w for w in weights if w], abs=1e-6)
    assert {member["size"] for member in members} == {48}, "the size of fine-tuning"
    retrain(workspace, recipe)
    assert [name.split("-")[0] for name in stages(workspace) if name not in done] == ["measure"]
