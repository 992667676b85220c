"""The classifiers inside a finished ONNX file: found, and put back with a row more or less. No torch, no checkpoint.

Nothing else of a graph depends on the number of classes but the reshape of logits by crops (models.export.graph).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from contract import labels_sha256
from durable import replacing, sha256, sync
from models.errors import EnrolmentError

BETWEEN = ("Reshape", "Cast")  # a classifier and its softmax
RETRAIN = "ingest the photos and run `cleanshelf retrain` instead"


@dataclass(frozen=True)
class Classifier:
    """The last layer of one member: source (n, d) times rows (C, d), plus bias (C,), is logits (n, C); two names of tensors."""

    rows: NDArray[np.floating]
    bias: NDArray[np.floating]
    source: str
    logits: str


@dataclass(frozen=True)
class Graph:
    """A whole file in memory: `labels` from its metadata, `classifiers` one for each member, `external` the file of its weights."""

    model: ModelProto
    labels: list[str]
    classifiers: list[Classifier]
    external: str | None


def read_graph(path: Path) -> Graph:
    """The file with all its weights.

    Raises:
        EnrolmentError: it does not name its classes, or its classifiers are folded, fused or quantised.
    """
    model = onnx.load(path)
    labels = _labels(model, path)
    external = next(iter(external_files(path)), None)
    return Graph(model, labels, _classifiers(model, len(labels), path), external)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of an ONNX file, without its weights."""
    return card(onnx.load(path, load_external_data=False))


def card(model: ModelProto) -> dict[str, str]:
    """The metadata of a graph in memory."""
    return {entry.key: entry.value for entry in model.metadata_props}


def stamp(path: Path, metadata: Mapping[str, str]) -> None:
    """Adds metadata to a written file, in place and whole; the weights are not touched."""
    model = onnx.load(path, load_external_data=False)
    helper.set_model_props(model, card(model) | dict(metadata))
    with replacing(path) as file:
        file.write(model.SerializeToString())


def external_files(path: Path) -> list[str]:
    """Names of the files beside a graph that hold its weights, sorted; most graphs have none."""
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    return sorted({entry.value for each in tensors for entry in each.external_data if entry.key == "location"})


def stamp_weights(path: Path) -> None:
    """Names the digests of the files that hold its weights in a graph that has some, so that its own stands for all."""
    if files := external_files(path):
        stamp(path, {"weights_sha256": " ".join(map(sha256, (path.parent / name for name in files)))})


def name_classes(labels: Sequence[str]) -> dict[str, str]:
    """Labels as they stand in the metadata: themselves, and what they hash to."""
    return {"labels": json.dumps(list(labels), ensure_ascii=False), "labels_sha256": labels_sha256(labels)}


def put(graph: Graph, classifier: Classifier, *, rows: NDArray[np.floating], bias: NDArray[np.floating]) -> None:
    """Rows (C', d) and bias (C',) in the place of a classifier's.

    Constants are fresh ones, because members may share theirs in the file: those adjusted by one prior have one bias.
    """
    inner, name = graph.model.graph, classifier.logits
    fresh = {f"{name}.weight": rows.astype(classifier.rows.dtype), f"{name}.bias": bias.astype(classifier.rows.dtype)}
    gemm = helper.make_node("Gemm", [classifier.source, *fresh], [name], name=f"{name}.classifier", transB=1)
    constants = {tensor.name: tensor for tensor in inner.initializer}
    for node in inner.node:
        if name in node.output:
            node.CopyFrom(gemm)
        elif node.op_type == "Reshape" and node.input[0] == name:
            shape = numpy_helper.to_array(constants[node.input[1]])
            node.input[1] = f"{name}.shape"
            fresh[f"{name}.shape"] = np.append(shape[:-1], len(rows))
    for key, value in fresh.items():
        if key in constants:
            inner.initializer.remove(constants[key])
        inner.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), key))
    _drop_unused(graph.model)


def write(graph: Graph, path: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """The file, with external data beside it where it had some, checked and on the disk; uses the graph up.

    Args:
        metadata: to add to its own.

    Raises:
        EnrolmentError: the patched graph is none; something else in it depends on the number of classes.
    """
    helper.set_model_props(graph.model, card(graph.model) | dict(metadata or {}))
    onnx.save(graph.model, path, save_as_external_data=graph.external is not None, location=graph.external)
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise EnrolmentError(f"the graph cannot be patched ({error}); {RETRAIN}") from None
    stamp_weights(path)
    for name in {path.name, graph.external or path.name}:
        sync(path.parent / name)


def _labels(model: ModelProto, path: Path) -> list[str]:
    try:
        return [str(label) for label in json.loads(card(model)["labels"])]
    except (KeyError, ValueError, TypeError):
        raise EnrolmentError(f"{path}: no metadata `labels`; take the file of a model version") from None


def _classifiers(model: ModelProto, num_classes: int, path: Path) -> list[Classifier]:
    """In the order of the graph: what stands before a softmax and has a row for each class."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    maker = {name: node for node in model.graph.node for name in node.output}
    found: dict[str, Classifier] = {}
    for node in model.graph.node:
        if node.op_type == "Softmax":
            logits = node.input[0]
            while logits in maker and maker[logits].op_type in BETWEEN:
                logits = maker[logits].input[0]
            classifier = _linear(logits, maker, constants)
            if classifier and len(classifier.rows) == num_classes:
                found[logits] = classifier
    members = len(json.loads(card(model).get("members", "[]"))) or len(found)
    if not found or len(found) != members:
        raise EnrolmentError(
            f"{path}: {len(found)} classifiers of {num_classes} classes can be read in the graph, {members or 1} expected; it "
            f"was optimised or quantised; {RETRAIN}"
        )
    return list(found.values())


def _linear(logits: str, maker: Mapping[str, NodeProto], constants: Mapping[str, TensorProto]) -> Classifier | None:
    """What gives these logits, if it is a constant matrix times a tensor, and a constant bias: Gemm, or MatMul and Add."""
    product, added = maker.get(logits), list[str]()
    if product is not None and product.op_type == "Add":
        added = [name for name in product.input if name in constants]
        product = next((maker[name] for name in product.input if name in maker), None)
    if product is None or product.op_type not in ("Gemm", "MatMul") or product.input[1] not in constants:
        return None
    how = {attribute.name: helper.get_attribute_value(attribute) for attribute in product.attribute}
    weight = numpy_helper.to_array(constants[product.input[1]])
    added += product.input[2:]
    plain = how.get("alpha", 1) == 1 and how.get("beta", 1) == 1 and not how.get("transA")
    if not plain or weight.ndim != 2 or len(added) > 1 or any(name not in constants for name in added):
        return None
    rows = weight if how.get("transB") else weight.T
    bias = numpy_helper.to_array(constants[added[0]]) if added else np.zeros(len(rows), rows.dtype)
    return Classifier(rows, np.broadcast_to(bias.squeeze(), len(rows)), product.input[0], logits)


def _drop_unused(model: ModelProto) -> None:
    """Products and constants that nothing reads, and the shapes that were inferred for the former number of classes."""
    graph = model.graph
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for node in [node for node in graph.node if not read & set(node.output)]:
        graph.node.remove(node)
    read = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
    del graph.value_info[:]
