"""The two graphs that serving is measured with. Their weights are random: speed does not depend on the answers.

heavy: ResNet-18, MobileNetV3-small and DeiT-tiny, ten crops of 96 px, 5,000 classes
light: MobileNetV3-small, one view of 96 px: little but overhead
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.export.graph import DeployGraph
from models.export.onnx_file import write_onnx
from models.export.patch import name_classes
from models.networks.network import build_network
from models.recipe.config import Export, Member
from models.training.train import Trained

SIDE = 160
SIZE = 96
HEAVY = ("resnet18", "mobilenetv3_small_100", "deit_tiny_patch16_224")
LIGHT = ("mobilenetv3_small_100",)


def graph(backbones: tuple[str, ...], *, crops: int, num_classes: int = 5000) -> DeployGraph:
    """Fused graph of networks that were never trained."""
    labels = names(num_classes)
    members = []
    for seed, backbone in enumerate(backbones):
        torch.manual_seed(seed)
        member = Member(backbone=backbone, size=SIZE, seed=seed)
        members.append(Trained(build_network(member, num_classes=num_classes).eval(), member, labels, 0.0))
    return DeployGraph(members, settings=Export(input_size=SIDE, crops=crops, enlarge=(1.25,))).eval()


def write(made: DeployGraph, path: Path) -> Path:
    """Writes the graph as a file that names its classes."""
    write_onnx(made, path, input_size=SIDE, metadata=name_classes(names(made.num_classes)))
    return path


def names(num_classes: int) -> list[str]:
    """Labels."""
    return [f"product {number}" for number in range(num_classes)]


def photos(count: int) -> NDArray[np.uint8]:
    """Photos (count, SIDE, SIDE, 3) of noise."""
    return np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
