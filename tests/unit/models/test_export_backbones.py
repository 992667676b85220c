"""The three backbones of the AliProducts report as one graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from contract import OUTPUTS
from models.export.graph import DeployGraph
from models.export.onnx_file import write_onnx
from models.export.parity import measure_parity, require_parity
from models.networks.network import build_network
from models.recipe.config import Export, Member, load_recipe
from models.training.train import Trained

SIDE = 64  # of the members; a multiple of the patches of DeiT and of what the others halve
CLASSES = [f"product {number}" for number in range(200)]


def trained(backbone: str, *, tau: float) -> Trained:
    """A network with random weights, batch norm statistics that fit them, and a classifier with clear preferences."""
    torch.manual_seed(0)
    member = Member(backbone=backbone, size=SIDE)
    network = build_network(member, num_classes=len(CLASSES)).train()
    with torch.no_grad():
        for _ in range(20):
            network(torch.rand(8, 3, SIDE, SIDE))
    network.head.classifier.weight.data *= 20
    return Trained(network.eval(), member, CLASSES, tau)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_reports_three_backbones_answer_as_one_graph(tmp_path: Path) -> None:
    names = [member.backbone for member in load_recipe("aliproducts").members]
    assert names == ["resnest101e.in1k", "tf_efficientnetv2_m.in21k_ft_in1k", "deit_small_patch16_224.fb_in1k"]
    members = [trained(name, tau=tau) for name, tau in zip(names, (0.6, 0.5, 0.7), strict=True)]
    graph = DeployGraph(members, settings=Export(input_size=80, crops=2))
    write_onnx(graph, tmp_path / "model.onnx", input_size=80, metadata={})
    photos = np.random.default_rng(0).integers(0, 256, (7, 80, 80, 3)).astype(np.uint8)
    parity = measure_parity(graph, tmp_path / "model.onnx", photos)
    print(parity)  # for pytest -s
    require_parity(parity)
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    assert [output.name for output in model.graph.output] == list(OUTPUTS)
