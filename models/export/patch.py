"""Classifiers and discriminants of a finished ONNX file: reading them, and replacing their rows, without torch.

Apart from these, only the reshape of logits by crops depends on the number of classes (models.export.graph).
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

BETWEEN = ("Reshape", "Cast")  # operators that may stand between a classifier and its softmax
ROWS = "known.discriminants."  # start of the names of constants that the score `discriminant` uses
RETRAIN = "ingest the photos and run `cleanshelf retrain` instead"


@dataclass(frozen=True)
class Classifier:
    """Last layer of one member: logits = source @ rows.T + bias.

    rows: (C, d). bias: (C,). source, logits: names of the tensors (n, d) and (n, C).
    """

    rows: NDArray[np.floating]
    bias: NDArray[np.floating]
    source: str
    logits: str


@dataclass(frozen=True)
class Graph:
    """A whole file in memory.

    labels: from its metadata. classifiers: one per member. external: name of the file of its external weights, if any.
    discriminants: one per member, if `known` uses them; their `logits` are the discriminants of the classes.
    """

    model: ModelProto
    labels: list[str]
    classifiers: list[Classifier]
    external: str | None
    discriminants: list[Classifier]


def read_graph(path: Path) -> Graph:
    """Reads a file with all its weights.

    Raises:
        EnrolmentError: the file does not name its classes, or its classifiers are folded, fused or quantised.
    """
    model = onnx.load(path)
    labels = _labels(model, path)
    external = next(iter(external_files(path)), None)
    classifiers, discriminants = _classifiers(model, len(labels), path), _discriminants(model, len(labels))
    if len(discriminants) not in (0, len(classifiers)):
        raise EnrolmentError(
            f"{path}: the graph has {len(discriminants)} readable discriminants for {len(classifiers)} members; {RETRAIN}"
        )
    return Graph(model, labels, classifiers, external, discriminants)


def read_metadata(path: Path) -> dict[str, str]:
    """Metadata of an ONNX file; external weights are not read."""
    return metadata_of(onnx.load(path, load_external_data=False))


def metadata_of(model: ModelProto) -> dict[str, str]:
    """Metadata of a graph in memory."""
    return {entry.key: entry.value for entry in model.metadata_props}


def stamp(path: Path, metadata: Mapping[str, str]) -> None:
    """Adds metadata to a file, atomically; external weights are not touched."""
    model = onnx.load(path, load_external_data=False)
    helper.set_model_props(model, metadata_of(model) | dict(metadata))
    with replacing(path) as file:
        file.write(model.SerializeToString())


def external_files(path: Path) -> list[str]:
    """Sorted names of the files with a graph's external weights, in the same folder; most graphs have none."""
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    return sorted({entry.value for each in tensors for entry in each.external_data if entry.key == "location"})


def stamp_weights(path: Path) -> None:
    """Adds the hashes of its external weights to a graph's metadata, so that the graph's own hash covers them."""
    if files := external_files(path):
        stamp(path, {"weights_sha256": " ".join(map(sha256, (path.parent / name for name in files)))})


def name_classes(labels: Sequence[str]) -> dict[str, str]:
    """Metadata of the labels: their list and its hash."""
    return {"labels": json.dumps(list(labels), ensure_ascii=False), "labels_sha256": labels_sha256(labels)}


def replace_classifier(
    graph: Graph, classifier: Classifier, *, rows: NDArray[np.floating], bias: NDArray[np.floating]
) -> None:
    """Replaces the rows and the bias of a classifier by rows (C', d) and bias (C',).

    The constants get new names, because members may share them: those adjusted by the same prior have the same bias.
    """
    inner, name = graph.model.graph, classifier.logits
    start = f"{ROWS}{name}.rows" if any(classifier is each for each in graph.discriminants) else name
    new = {f"{start}.weight": rows.astype(classifier.rows.dtype), f"{start}.bias": bias.astype(classifier.rows.dtype)}
    gemm = helper.make_node("Gemm", [classifier.source, *new], [name], name=f"{name}.classifier", transB=1)
    constants = {tensor.name: tensor for tensor in inner.initializer}
    for node in inner.node:
        if name in node.output:
            node.CopyFrom(gemm)
        elif node.op_type == "Reshape" and node.input[0] == name:
            shape = numpy_helper.to_array(constants[node.input[1]])
            node.input[1] = f"{name}.shape"
            new[f"{name}.shape"] = np.append(shape[:-1], len(rows))
    for key, value in new.items():
        if key in constants:
            inner.initializer.remove(constants[key])
        inner.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), key))
    _drop_unused(graph.model)


def write(graph: Graph, path: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Writes, checks and syncs the file, with external data if it had some. The graph cannot be used afterwards.

    Args:
        metadata: metadata to add.

    Raises:
        EnrolmentError: the patched graph is not valid, as something else in it depends on the number of classes.
    """
    helper.set_model_props(graph.model, metadata_of(graph.model) | dict(metadata or {}))
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
        return [str(label) for label in json.loads(metadata_of(model)["labels"])]
    except (KeyError, ValueError, TypeError):
        raise EnrolmentError(f"{path}: there is no metadata `labels`; give the file of a model version") from None


def _classifiers(model: ModelProto, num_classes: int, path: Path) -> list[Classifier]:
    """Linear layers before a softmax that have a row for each class, in the order of the graph."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    maker = {name: node for node in model.graph.node for name in node.output}
    classifiers: dict[str, Classifier] = {}
    for node in model.graph.node:
        if node.op_type == "Softmax":
            logits = node.input[0]
            while logits in maker and maker[logits].op_type in BETWEEN:
                logits = maker[logits].input[0]
            classifier = _linear(logits, maker, constants)
            if classifier and len(classifier.rows) == num_classes:
                classifiers[logits] = classifier
    members = len(json.loads(metadata_of(model).get("members", "[]"))) or len(classifiers)
    if not classifiers or len(classifiers) != members:
        raise EnrolmentError(
            f"{path}: the graph has {len(classifiers)} readable classifiers of {num_classes} classes instead of {members or 1}, "
            f"as it was optimised or quantised; {RETRAIN}"
        )
    return list(classifiers.values())


def _discriminants(model: ModelProto, num_classes: int) -> list[Classifier]:
    """Linear layers of the score `discriminant`, told by the names of their constants, in the order of the graph."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    maker = {name: node for node in model.graph.node for name in node.output}
    found = []
    for node in model.graph.node:
        if any(name.startswith(ROWS) and name.endswith(".rows.weight") for name in node.input):
            layer = _linear(node.output[0], maker, constants)
            if layer and len(layer.rows) == num_classes:
                found.append(layer)
    return found


def _linear(logits: str, maker: Mapping[str, NodeProto], constants: Mapping[str, TensorProto]) -> Classifier | None:
    """Layer that computes these logits, if it has a constant matrix and bias: Gemm, or MatMul and Add."""
    product, added = maker.get(logits), list[str]()
    if product is not None and product.op_type == "Add":
        added = [name for name in product.input if name in constants]
        product = next((maker[name] for name in product.input if name in maker), None)
    if product is None or product.op_type not in ("Gemm", "MatMul") or product.input[1] not in constants:
        return None
    options = {attribute.name: helper.get_attribute_value(attribute) for attribute in product.attribute}
    weight = numpy_helper.to_array(constants[product.input[1]])
    added += product.input[2:]
    plain = options.get("alpha", 1) == 1 and options.get("beta", 1) == 1 and not options.get("transA")
    if not plain or weight.ndim != 2 or len(added) > 1 or any(name not in constants for name in added):
        return None
    rows = weight if options.get("transB") else weight.T
    bias = numpy_helper.to_array(constants[added[0]]) if added else np.zeros(len(rows), rows.dtype)
    return Classifier(rows, np.broadcast_to(bias.squeeze(), len(rows)), product.input[0], logits)


def _drop_unused(model: ModelProto) -> None:
    """Removes products and constants that are not used, and shapes inferred for the former number of classes."""
    graph = model.graph
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for node in [node for node in graph.node if not read & set(node.output)]:
        graph.node.remove(node)
    read = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
    del graph.value_info[:]
