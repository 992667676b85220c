"""The classifiers inside a finished ONNX file: found, and put back with a row more or less. No torch, no checkpoint.

Nothing else of a graph depends on the number of classes (models.export.graph), so this is all that a product needs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data

from models.errors import EnrolmentError

RETRAIN = "put the photos into a delivery, and `cleanshelf ingest` and `retrain` instead"
Constants = Mapping[str, onnx.TensorProto]


@dataclass(frozen=True)
class Classifier:
    """The last layer of one member.

    rows: (C, d). bias: (C,). source: tensor (n, d) that it multiplies. logits: tensor (n, C) that it gives. nodes: what does so.
    """

    rows: NDArray[np.floating]
    bias: NDArray[np.floating]
    source: str
    logits: str
    nodes: tuple[NodeProto, ...]


def load(path: Path) -> ModelProto:
    """The whole graph with its weights."""
    return onnx.load(path)


def labels_of(model: ModelProto, *, path: Path) -> list[str]:
    """Line i names class i.

    Raises:
        EnrolmentError: the file does not say.
    """
    try:
        return list(json.loads({entry.key: entry.value for entry in model.metadata_props}["labels"]))
    except (KeyError, ValueError):
        raise EnrolmentError(f"{path}: no metadata `labels`; take the file of a model version") from None


def name_classes(labels: Sequence[str]) -> dict[str, str]:
    """Labels as they stand in the metadata: themselves, and what they hash to."""
    digest = hashlib.sha256("\n".join(labels).encode()).hexdigest()
    return {"labels": json.dumps(list(labels), ensure_ascii=False), "labels_sha256": digest}


def classifiers(model: ModelProto, *, num_classes: int, path: Path) -> list[Classifier]:
    """Of every member, in the order of the graph.

    Raises:
        EnrolmentError: there is none, or one whose weights are folded, fused or quantised.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    maker = {name: node for node in model.graph.node for name in node.output}
    softmaxes = [node.input[0] for node in model.graph.node if node.op_type == "Softmax"]
    found = [each for logits in dict.fromkeys(softmaxes) if (each := _linear(logits, maker, constants))]
    found = [each for each in found if len(each.rows) == num_classes]
    members = {entry.key: entry.value for entry in model.metadata_props}.get("members")
    if not found or (members and len(json.loads(members)) != len(found)):
        raise EnrolmentError(
            f"{path}: {len(found)} classifiers of {num_classes} classes can be read in the graph, want one of each member; "
            f"it was optimised or quantised, so {RETRAIN}"
        )
    return found


def _linear(logits: str, maker: Mapping[str, NodeProto], constants: Constants) -> Classifier | None:
    """What gives these logits, if it is a constant matrix (and a bias) times a tensor: Gemm, or MatMul and Add."""
    last = maker.get(logits)
    nodes, bias = [last], None
    if last is not None and last.op_type == "Add":
        constant = [name for name in last.input if name in constants]
        product = [name for name in last.input if name not in constants]
        if len(constant) != 1:
            return None
        bias = numpy_helper.to_array(constants[constant[0]])
        nodes = [maker.get(product[0]), last]
    node = nodes[0]
    if node is None or node.op_type not in ("Gemm", "MatMul") or node.input[1] not in constants:
        return None
    how = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if how.get("alpha", 1) != 1 or how.get("beta", 1) != 1 or how.get("transA"):
        return None
    weight = numpy_helper.to_array(constants[node.input[1]])
    if weight.ndim != 2:
        return None
    rows = weight if how.get("transB") else weight.T
    if len(node.input) > 2:
        if node.input[2] not in constants:
            return None
        bias = numpy_helper.to_array(constants[node.input[2]])
    bias = np.zeros(len(rows), rows.dtype) if bias is None else np.broadcast_to(bias, (len(rows),))
    return Classifier(rows, bias, node.input[0], logits, tuple(each for each in nodes if each))


def put(model: ModelProto, classifier: Classifier, *, rows: NDArray[np.floating], bias: NDArray[np.floating]) -> None:
    """Rows (C', d) and bias (C',) in the place of a classifier's; what else reads its logits sees them too.

    The constants are new ones: members that are adjusted alike share theirs in the file.
    """
    graph, name = model.graph, classifier.logits
    weight = {f"{name}.weight": rows, f"{name}.bias": bias}
    node = helper.make_node("Gemm", [classifier.source, *weight], [name], name=f"{name}.classifier", transB=1)
    place = next(i for i, each in enumerate(graph.node) if name in each.output)
    graph.node[place].CopyFrom(node)
    used = {each for other in graph.node for each in other.input}
    for former in classifier.nodes[:-1]:
        if not used & set(former.output):
            graph.node.remove(former)
    used = {each for other in graph.node for each in other.input} - set(weight)
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    fresh = [numpy_helper.from_array(np.ascontiguousarray(value, classifier.rows.dtype), key) for key, value in weight.items()]
    del graph.initializer[:], graph.value_info[:]  # shapes that were inferred name the former number of classes
    graph.initializer.extend([*kept, *fresh])


def outputs_added(model: ModelProto, found: Sequence[Classifier]) -> None:
    """Makes the graph tell what each classifier is asked about, under the names of `Classifier.source`."""
    for each in found:
        kind = helper.np_dtype_to_tensor_dtype(each.rows.dtype)
        model.graph.output.append(helper.make_tensor_value_info(each.source, kind, None))


def write(model: ModelProto, path: Path, *, metadata: Mapping[str, str], external: str | None) -> None:
    """The graph with this metadata added, checked and on the disk; uses the model up.

    Args:
        external: name of the file beside it for its weights; None: they lie in the file itself.
    """
    entries = {entry.key: entry.value for entry in model.metadata_props} | dict(metadata)
    helper.set_model_props(model, entries)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path, save_as_external_data=external is not None, location=external)
    onnx.checker.check_model(path, full_check=True)
    for file in (path, path.parent / external if external else path):
        with file.open("rb") as written:
            os.fsync(written.fileno())


def external_data(path: Path) -> str | None:
    """Name of the file beside the graph that holds its weights, None where they lie in it."""
    model = onnx.load(path, load_external_data=False)
    return next(_locations(model), None)


def _locations(model: ModelProto) -> Iterator[str]:
    tensors = (tensor for tensor in model.graph.initializer if uses_external_data(tensor))
    return (entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location")
