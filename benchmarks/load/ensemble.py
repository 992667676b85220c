"""The same members as a Triton ensemble: the usual design, and the one that the fused graph is measured against.

prepare -> network_0, network_1, ... -> combine, each a model of its own: ONNX files of the very same modules, with as many
instances and threads as the fused graph, and batching. Plain: the networks give logits, as exported networks do. Tuned: they
were exported for this ensemble and pass on their ten best classes alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from google.protobuf import text_format
from torch import Tensor, nn
from tritonclient.grpc import model_config_pb2

from load.networks import SIDE
from models.export.graph import Branch, DeployGraph
from models.export.onnx_file import OPSET

INTEGER, FLOAT = "TYPE_INT64", "TYPE_FP32"


class Prepare(nn.Module):
    """Turns photos into the normalised crops of every member."""

    def __init__(self, made: DeployGraph) -> None:
        super().__init__()
        self.branches = made.branches

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Crops of every member, for photos (B, S, S, 3)."""
        pixels = image.permute(0, 3, 1, 2).float()
        return tuple(self.crops(branch, pixels) for branch in self.branches)

    @staticmethod
    def crops(branch: Branch, pixels: Tensor) -> Tensor:
        """(B, crops, 3, size, size)."""
        full = branch.resize(pixels)
        views = torch.stack([branch._crop(full, *box) for box in branch.crops], dim=1)
        return branch.normalised(views)


class OneNetwork(nn.Module):
    """Turns crops into the logits (B, crops, C) of one member, as any export of a network does."""

    def __init__(self, branch: Branch, *, keep: int) -> None:
        super().__init__()
        self.branch, self.keep = branch, keep

    def forward(self, crops: Tensor) -> tuple[Tensor, ...]:
        """Logits (B, crops, C) of one member."""
        embedding = self.branch.sphere(self.branch.embed(self.branch.backbone(crops.flatten(0, 1))))
        return (self.branch.classifier(embedding).unflatten(0, (-1, crops.shape[1])),)


class TunedNetwork(OneNetwork):
    """Turns crops into the member's ten best classes and their probabilities: a thousandth of the bytes."""

    def forward(self, crops: Tensor) -> tuple[Tensor, ...]:
        """The ten best classes of one member, and their probabilities."""
        best = super().forward(crops)[0].softmax(2).mean(1).topk(self.keep)
        return best.indices, best.values


class Combine(nn.Module):
    """Turns the members' logits into the best classes of the mean of their best classes."""

    def __init__(self, made: DeployGraph) -> None:
        super().__init__()
        self.num_classes, self.top_k, self.keep = made.num_classes, made.top_k, made.keep
        self.share = 1 / len(made.branches)

    def forward(self, *logits: Tensor) -> tuple[Tensor, Tensor]:
        """Answers of the ensemble."""
        best = [each.softmax(2).mean(1).topk(self.keep) for each in logits]
        return self.of_best([(each.indices, each.values) for each in best])

    def of_best(self, best: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        total = torch.zeros(best[0][0].shape[0], self.num_classes)
        for ids, probs in best:
            total = total.scatter_add(1, ids, probs)
        found = total.topk(self.top_k)
        return found.indices, found.values * self.share


class TunedCombine(Combine):
    """Combine for the output of TunedNetworks."""

    def forward(self, *best: Tensor) -> tuple[Tensor, Tensor]:
        """Answers of the ensemble."""
        return self.of_best(list(zip(best[::2], best[1::2], strict=True)))


def write(
    made: DeployGraph, folder: Path, *, name: str, instances: int, batch: int, tuned: bool
) -> dict[str, dict[str, Path]]:
    """Models of the ensemble `name`, as `served` takes them: name -> path in the model's folder -> file.

    Args:
        tuned: networks pass on their ten best classes instead of all logits.
    """
    members, keep = range(len(made.branches)), made.keep
    shapes = [(len(branch.crops), 3, branch.size, branch.size) for branch in made.branches]
    views = [_tensor(f"crops_{member}", FLOAT, shapes[member]) for member in members]
    photo = [_tensor("image", "TYPE_UINT8", (SIDE, SIDE, 3))]
    answer = [_tensor("ids", INTEGER, (made.top_k,)), _tensor("probs", FLOAT, (made.top_k,))]
    gives = [
        [_tensor(f"ids_{member}", INTEGER, (keep,)), _tensor(f"probs_{member}", FLOAT, (keep,))] if tuned
        else [_tensor(f"logits_{member}", FLOAT, (shapes[member][0], made.num_classes))]
        for member in members
    ]  # fmt: skip
    handed_on = [tensor for each in gives for tensor in each]
    network, combine = (TunedNetwork, TunedCombine) if tuned else (OneNetwork, Combine)
    parts = [("prepare", Prepare(made), photo, views), ("combine", combine(made), handed_on, answer)]
    parts += [(f"network_{m}", network(made.branches[m], keep=keep), [views[m]], gives[m]) for m in members]
    files, steps = {}, []
    for part, module, takes, leaves in parts:
        model = f"{name}_{part}"
        onnx = folder / f"{model}.onnx"
        _export(module, onnx, takes=takes, gives=leaves)
        config = _config(model, takes, leaves, batch=batch, backend="onnxruntime",
                         instance_group=[{"kind": "KIND_CPU", "count": instances}], dynamic_batching={})  # fmt: skip
        config.parameters["intra_op_thread_count"].string_value = "1"
        files[model] = {"1/model.onnx": onnx, "config.pbtxt": _write(config, folder / f"{model}.pbtxt")}
        steps.append(_step(model, takes, leaves))
    whole = _config(name, photo, answer, batch=batch, platform="ensemble", ensemble_scheduling={"step": steps})
    empty = folder / "empty"
    empty.touch()
    files[name] = {"1/keep": empty, "config.pbtxt": _write(whole, folder / f"{name}.pbtxt")}
    return files


def _tensor(name: str, kind: str, dims: tuple[int, ...]) -> dict[str, Any]:
    return {"name": name, "data_type": kind, "dims": dims}


def _example(tensor: dict[str, Any]) -> Tensor:
    """Batch of two, with memory of its own: the exporter takes one tensor given twice for one input."""
    shape = (2, *tensor["dims"])
    if tensor["data_type"] == FLOAT:
        return torch.rand(shape)
    is_photo = tensor["data_type"] == "TYPE_UINT8"
    return torch.randint(0, 10, shape, dtype=torch.uint8 if is_photo else torch.int64)


def _export(module: nn.Module, path: Path, *, takes: list, gives: list) -> None:
    batch = torch.export.Dim("batch", min=1, max=4096)
    shapes = tuple({0: batch} for _ in takes)
    torch.onnx.export(
        module.eval(), tuple(map(_example, takes)), path, dynamo=True, opset_version=OPSET, verbose=False,
        external_data=False, input_names=[each["name"] for each in takes],
        output_names=[each["name"] for each in gives],
        dynamic_shapes=(shapes,) if isinstance(module, Combine) else shapes,
    )  # fmt: skip


def _config(name: str, takes: list, gives: list, *, batch: int, **rest: object) -> model_config_pb2.ModelConfig:
    return model_config_pb2.ModelConfig(name=name, max_batch_size=batch, input=takes, output=gives, **rest)


def _step(name: str, takes: list, gives: list) -> dict[str, object]:
    return {"model_name": name, "model_version": -1, "input_map": {each["name"]: each["name"] for each in takes},
            "output_map": {each["name"]: each["name"] for each in gives}}  # fmt: skip


def _write(config: model_config_pb2.ModelConfig, path: Path) -> Path:
    path.write_text(text_format.MessageToString(config))
    return path
