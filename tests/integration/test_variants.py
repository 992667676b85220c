"""Variants in the real flow: every precision and number of crops is exported and measured, and one is served."""

from __future__ import annotations

import json
from pathlib import Path

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

VARIANTS = ("export.variants=true", "export.precision=int8", "export.fall=1")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_variants_are_measured_and_the_offered_variant_is_served(
    tmp_path: Path, prefect_server: None, triton_environment: Environment
) -> None:
    workspace, recipe = Workspace.init(tmp_path / "shop"), load_recipe("smoke", overrides=(*QUICK, *ANY, *VARIANTS))
    ingest(workspace, write_delivery(tmp_path / "delivery"))
    report = retrain(workspace, recipe)
    assert report.model_version == 1
    done = stages(workspace)
    assert sum(name.startswith("export-") for name in done) == 4
    (folder,) = (workspace.runs / "stages" / name for name in done if name.startswith("variants-"))
    variants = {each["name"]: each for each in json.loads((folder / "variants.json").read_text())}
    assert set(variants) == {"fp16", "bf16", "int8", "crops1", "crops2", "crops5", "crops10"}
    assert all(variants[f"crops{crops}"]["ms"] > 0 for crops in (1, 2, 5, 10))
    served = repository(workspace).path(1) / "model.onnx"
    assert served.read_bytes() == (folder / "model.onnx").read_bytes()
    card, lineage = read_metadata(served), repository(workspace).lineage(1)
    assert json.loads(card["metrics"]) == lineage["metrics"]
    if variants["int8"]["offered"]:  # a network as small as this may not become faster
        assert json.loads(card["variant"]) == variants["int8"]
        assert any(reason.startswith("int8 instead of that") for reason in lineage["verdict"])
    else:
        assert "ms for a photo" in variants["int8"]["refused"]
        assert "variant" not in card
    retrain(workspace, recipe)
    assert [name.split("-")[0] for name in stages(workspace) if name not in done] == ["measure"]
