"""Tiny ONNX graphs that meet the endpoint's contract without training, and model versions made of them.

The mean colour of a photo decides its class.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from durable import sha256
from serving.repository.repository import ModelRepository

SIZE = 16
K = 5
LABELS = tuple(f"product {number}" for number in range(8))


def write_graph(
    path: Path,
    *,
    seed: int = 0,
    size: int = SIZE,
    k: int = K,
    metadata: dict[str, str] | None = None,
    work: int = 0,
    external: bool = False,
    reject: bool = False,
) -> Path:
    """Writes a graph: image -> mean colour -> 8 logits -> softmax -> top k.

    Args:
        work: number of 512-wide matrix products that make it slow.
        external: store the weights in a file beside the graph.
        reject: the graph rejects every photo.
    """
    random = np.random.default_rng(seed)
    weights = {
        "scale": np.float32(1 / 255),
        "axes": np.array([1, 2], np.int64),
        "widen": random.normal(size=(3, 512)).astype(np.float32),
        "weight": random.normal(size=(512, len(LABELS))).astype(np.float32) / 4,
        "top": np.array([min(k, len(LABELS))], np.int64),
        "pad": np.array([0, 0, 0, max(0, k - len(LABELS))], np.int64),
        "zero": np.float32(0),
        "rejected": np.int64(-1),
        **({"accept": np.array(False)} if reject else {}),
        "last": np.array([1], np.int64),
    }
    if work:
        weights |= {"square": np.eye(512, dtype=np.float32), "rows": np.ones((1024, 1), np.float32)}
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["unit"]),
        helper.make_node("ReduceMean", ["unit", "axes"], ["colour"], keepdims=0),
        helper.make_node("MatMul", ["colour", "widen"], ["wide"]),
        *_work(work),
        helper.make_node("Identity", ["worked" if work else "wide"], ["embedding"]),
        helper.make_node("MatMul", ["embedding", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["all"], axis=1),
        helper.make_node("TopK", ["all", "top"], ["best", "classes"]),
        helper.make_node("Pad", ["best", "pad", "zero"], ["probs"]),
        helper.make_node("ReduceMax", ["all", "last"], ["known"], keepdims=1),
        helper.make_node("Pad", ["classes", "pad", "rejected"], ["classified" if reject else "ids"]),
        *([helper.make_node("Where", ["accept", "classified", "rejected"], ["ids"])] if reject else []),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", size, size, 3])],
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", k]),
            helper.make_tensor_value_info("probs", TensorProto.FLOAT, ["batch", k]),
            helper.make_tensor_value_info("known", TensorProto.FLOAT, ["batch", 1]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 512]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"labels": json.dumps(LABELS)} | (metadata or {}))
    if external:
        onnx.save(model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=1024)
    else:
        onnx.save(model, path)
    return path


def golden_images(count: int = 4, *, size: int = SIZE, seed: int = 1) -> NDArray[np.uint8]:
    """Images (count, size, size, 3) uint8, each in a different colour."""
    random = np.random.default_rng(seed)
    colours = random.integers(0, 256, (count, 1, 1, 3))
    return np.clip(colours + random.integers(-20, 20, (count, size, size, 3)), 0, 255).astype(np.uint8)


def stage(repository: ModelRepository, folder: Path, *versions: int, **graph: Any) -> None:
    """Writes versions whose seed is their number and whose data version is `data<number>`."""
    for version in versions:
        path = write_graph(
            folder / f"{version}.onnx", seed=version, metadata={"data_version": f"data{version}"}, **graph
        )
        repository.write(path, version=version, labels=LABELS, lineage={}, golden=golden_images())


def sign(folder: Path) -> None:
    """Updates the hashes in the lineage of a damaged version, so that comparing hashes does not find the damage."""
    lineage = json.loads((folder / "lineage.json").read_text())
    lineage["files"] = {name: sha256(folder / name) for name in lineage["files"]}
    (folder / "lineage.json").write_text(json.dumps(lineage))


def make_endless(path: Path) -> None:
    """Changes the graph so that its computation never ends."""
    model = onnx.load(path)
    first = next(number for number, node in enumerate(model.graph.node) if "wide" in node.output)
    for node in list(model.graph.node)[first + 1 :]:
        node.input[:] = ["late" if name == "wide" else name for name in node.input]
    boolean, real = TensorProto.BOOL, TensorProto.FLOAT
    body = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name} out"]) for name in ("going", "value")],
        "again",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", boolean, []),
            helper.make_tensor_value_info("value", real, None),
        ],
        [
            helper.make_tensor_value_info("going out", boolean, []),
            helper.make_tensor_value_info("value out", real, None),
        ],
    )
    model.graph.node.insert(first + 1, helper.make_node("Loop", ["rounds", "yes", "wide"], ["late"], body=body))
    for name, value in {"rounds": np.int64(10**15), "yes": np.bool_(True)}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    onnx.save(model, path)


def _work(count: int) -> list[onnx.NodeProto]:
    """Nodes that multiply 1024 copies of each row by `count` identity matrices, which takes time and changes nothing."""
    if not count:
        return []
    last = ["busy0", *(f"busy{number}" for number in range(1, count + 1))]
    steps = [helper.make_node("MatMul", [a, "square"], [b]) for a, b in pairwise(last)]
    return [
        helper.make_node("Constant", [], ["first"], value_ints=[1]),
        helper.make_node("Unsqueeze", ["wide", "first"], ["row"]),
        helper.make_node("MatMul", ["rows", "row"], ["busy0"]),
        *steps,
        helper.make_node("ReduceMean", [last[-1], "first"], ["worked"], keepdims=0),
    ]
