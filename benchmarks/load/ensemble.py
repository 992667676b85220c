"""The same members as a Triton ensemble: what most people build, and what the fused graph is measured against.

prepare -> network_0, network_1, ... -> combine, each a model of its own, in the best light: all are ONNX files of the same
modules with as many instances as the fused graph, networks hand on their ten best classes alone, and the last step is as small.
"""

from __future__ import annotations

from pathlib import Path

import torch
from google.protobuf import text_format
from torch import Tensor, nn
from tritonclient.grpc import model_config_pb2

from load.networks import SIDE
from models.export.graph import Branch, DeployGraph
from models.export.onnx_file import OPSET

NAME = "ensemble"
IDS, PROBS, CROPS = "TYPE_INT64", "TYPE_FP32", "TYPE_FP32"


class Prepare(nn.Module):
    """Photos to the normalised crops of every member."""

    def __init__(self, made: DeployGraph) -> None:
        super().__init__()
        self.branches = made.branches

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        pixels = image.permute(0, 3, 1, 2).float() / 255
        return tuple(self.crops(branch, pixels) for branch in self.branches)

    @staticmethod
    def crops(branch: Branch, pixels: Tensor) -> Tensor:
        """(B, crops, 3, size, size)."""
        full = branch.resize @ pixels @ branch.resize.T
        views = torch.stack([branch._crop(full, *box) for box in branch.crops], dim=1)
        return (views - branch.mean) / branch.std


class OneNetwork(nn.Module):
    """Crops to the member's ten best classes and their probabilities."""

    def __init__(self, branch: Branch, *, keep: int) -> None:
        super().__init__()
        self.branch, self.keep = branch, keep

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.branch.sphere(self.branch.embed(self.branch.backbone(crops.flatten(0, 1))))
        probabilities = self.branch.classifier(embedding).softmax(1).unflatten(0, (-1, crops.shape[1])).mean(1)
        best = probabilities.topk(self.keep)
        return best.indices, best.values


class Combine(nn.Module):
    """The members' best classes to the best of their mean."""

    def __init__(self, made: DeployGraph) -> None:
        super().__init__()
        self.num_classes, self.top_k, self.share = made.num_classes, made.top_k, 1 / len(made.branches)

    def forward(self, *best: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros(best[0].shape[0], self.num_classes)
        for ids, probs in zip(best[::2], best[1::2], strict=True):
            total = total.scatter_add(1, ids, probs)
        found = total.topk(self.top_k)
        return found.indices, found.values * self.share


def write(made: DeployGraph, folder: Path, *, instances: int, batch: int) -> dict[str, dict[str, Path]]:
    """Models of the ensemble, as `served` takes them: name -> place in the model's folder -> file."""
    members, keep = range(len(made.branches)), made.keep
    shapes = [(len(branch.crops), 3, branch.size, branch.size) for branch in made.branches]
    image = torch.randint(0, 256, (2, SIDE, SIDE, 3), dtype=torch.uint8)
    crops = [torch.rand(2, *shape) for shape in shapes]
    best = [
        each for _ in members for each in (torch.randint(0, 10, (2, keep)), torch.rand(2, keep))
    ]  # aliases would be one input
    pairs = [name for member in members for name in (f"ids_{member}", f"probs_{member}")]
    kept = [{"name": name, "data_type": IDS if name.startswith("ids") else PROBS, "dims": [keep]} for name in pairs]
    views = [{"name": f"crops_{member}", "data_type": CROPS, "dims": shapes[member]} for member in members]
    photo = [{"name": "image", "data_type": "TYPE_UINT8", "dims": [SIDE, SIDE, 3]}]
    answer = [{"name": "ids", "data_type": IDS, "dims": [made.top_k]},
              {"name": "probs", "data_type": PROBS, "dims": [made.top_k]}]  # fmt: skip
    parts = {"prepare": (Prepare(made), (image,), photo, views), "combine": (Combine(made), tuple(best), kept, answer)}
    for member in members:
        network = OneNetwork(made.branches[member], keep=keep)
        parts[f"network_{member}"] = (network, (crops[member],), [views[member]], kept[2 * member : 2 * member + 2])
    files = {}
    for name, (module, example, takes, gives) in parts.items():
        onnx = folder / f"{name}.onnx"
        _export(module, example, onnx, takes=takes, gives=gives)
        config = _config(name, takes, gives, batch=batch, backend="onnxruntime",
                         instance_group=[{"kind": "KIND_CPU", "count": instances}], dynamic_batching={})  # fmt: skip
        config.parameters["intra_op_thread_count"].string_value = "1"
        files[name] = {"1/model.onnx": onnx, "config.pbtxt": _write(config, folder / f"{name}.pbtxt")}
    steps = [_step("prepare", ["image"], [view["name"] for view in views])]
    steps += [_step(f"network_{m}", [f"crops_{m}"], [f"ids_{m}", f"probs_{m}"]) for m in members]
    steps += [_step("combine", pairs, ["ids", "probs"])]
    whole = _config(NAME, photo, answer, batch=batch, platform="ensemble", ensemble_scheduling={"step": steps})
    empty = folder / "empty"
    empty.touch()
    files[NAME] = {"1/keep": empty, "config.pbtxt": _write(whole, folder / "ensemble.pbtxt")}
    return files


def _export(module: nn.Module, example: tuple[Tensor, ...], path: Path, *, takes: list, gives: list) -> None:
    batch = torch.export.Dim("batch", min=1, max=4096)
    shapes = tuple({0: batch} for _ in example)
    torch.onnx.export(
        module.eval(), example, path, dynamo=True, opset_version=OPSET, verbose=False, external_data=False,
        input_names=[each["name"] for each in takes], output_names=[each["name"] for each in gives],
        dynamic_shapes=(shapes,) if isinstance(module, Combine) else shapes,
    )  # fmt: skip


def _config(name: str, takes: list, gives: list, *, batch: int, **rest: object) -> model_config_pb2.ModelConfig:
    return model_config_pb2.ModelConfig(name=name, max_batch_size=batch, input=takes, output=gives, **rest)


def _step(name: str, takes: list[str], gives: list[str]) -> dict[str, object]:
    return {"model_name": name, "model_version": -1, "input_map": {each: each for each in takes},
            "output_map": {each: each for each in gives}}  # fmt: skip


def _write(config: model_config_pb2.ModelConfig, path: Path) -> Path:
    path.write_text(text_format.MessageToString(config))
    return path
