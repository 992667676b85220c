"""A graph whose backbones compute in 16 bits, made of the float32 file.

Resize, normalisation, embedding, classifier, softmax and ranking stay float32, and so do inputs and outputs: a variant keeps the
endpoint's contract, and further rows of its classifier are added to it as to any graph.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.errors import ExportError
from models.export.onnx_file import save

FLOAT = TensorProto.FLOAT
HALVES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
DTYPES: dict[int, np.dtype] = {
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
HALF_OPSET = 22  # the first whose convolutions take bf16
SCOPES = "pkg.torch.onnx.name_scopes"  # the exporter notes from which module of torch a node comes
BACKBONE = re.compile(r"branches\.\d+\.backbone")
STAYS_FLOAT = {"Resize": (1, 2)}  # inputs that ONNX has in float32 alone: region and scales


def in_backbone(node: onnx.NodeProto) -> bool:
    """Whether a node computes part of a member's backbone."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "[]")
    return any(BACKBONE.fullmatch(scope) for scope in ast.literal_eval(scopes))


def write_half(source: Path, target: Path, *, precision: str) -> None:
    """Writes the float32 graph `source` with backbones in "fp16" or "bf16".

    Raises:
        ExportError: the graph does not say which of its nodes are backbones, or the checker refuses the result.
    """
    model = onnx.load(source)
    model.graph.CopyFrom(Halved(model.graph, HALVES[precision]).graph())
    model.opset_import[0].version = max(model.opset_import[0].version, HALF_OPSET)
    save(model, target)


def write_rounded(source: Path, target: Path, *, precision: str) -> None:
    """Writes a float32 graph that rounds what `write_half` computes in 16 bits, to ask on a CPU what that costs in accuracy.

    Each operator computes in float32 and its result is rounded, which is what ONNX Runtime does where it lacks a 16-bit operator.
    """
    model = onnx.load(source)
    half = HALVES[precision]
    halved, nodes = Halved(model.graph, half), list[onnx.NodeProto]()
    for tensor in model.graph.initializer:
        if tensor.name in halved.weights:
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(_rounded(array, half).astype(np.float32), tensor.name))
    for node in model.graph.node:
        nodes.append(node)
        if in_backbone(node):
            nodes += halved.rounding(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    save(model, target)


class Halved:
    """A float32 graph whose backbones' tensors get another type; casts stand where the two meet."""

    def __init__(self, graph: onnx.GraphProto, half: int) -> None:
        self.source, self.half = graph, half
        inside = [node for node in graph.node if in_backbone(node)]
        if not inside:
            raise ExportError("no node of the graph names the backbone that it is part of; export it again")
        typed = (*graph.value_info, *graph.input, *graph.output)
        floats = {value.name for value in typed if value.type.tensor_type.elem_type == FLOAT}
        stored = {tensor.name for tensor in graph.initializer if tensor.data_type == FLOAT}
        self.made = {name for node in inside for name in node.output if name in floats}
        taken = {name for node in inside for _, name in _inputs(node)}
        self.weights = taken & stored
        self.entering = (taken & floats) - self.made - stored
        self.leaving = {name for node in graph.node if not in_backbone(node) for name in node.input} & self.made

    def graph(self) -> onnx.GraphProto:
        """The graph in two precisions."""
        graph = onnx.GraphProto()
        graph.CopyFrom(self.source)
        del graph.node[:], graph.initializer[:]
        graph.node.extend(self._nodes())
        graph.initializer.extend(self._weights())
        for value in graph.value_info:
            if value.name in self.made:
                value.type.tensor_type.elem_type = self.half
        return graph

    def rounding(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Casts to 16 bits and back behind a node, which gives what it computes another name."""
        casts = []
        for place, name in enumerate(node.output):
            if name in self.made:
                node.output[place] = f"{name}_exact"
                casts += [_cast(f"{name}_exact", _half(name), self.half), _cast(_half(name), name, FLOAT)]
        return casts

    def _nodes(self) -> Iterator[onnx.NodeProto]:
        """In an order that computes: a cast stands behind what it casts."""
        yield from (_cast(value.name, _half(value.name), self.half) for value in self.source.input
                    if value.name in self.entering)  # fmt: skip
        for node in self.source.node:
            yield self._inside(node) if in_backbone(node) else self._outside(node)
            yield from (_cast(name, _half(name), self.half) for name in node.output if name in self.entering)
            yield from (_cast(name, _float(name), FLOAT) for name in node.output if name in self.leaving)

    def _inside(self, node: onnx.NodeProto) -> onnx.NodeProto:
        own = onnx.NodeProto()
        own.CopyFrom(node)
        for place, name in _inputs(node):
            if name in self.weights or name in self.entering:
                own.input[place] = _half(name)
        for attribute in own.attribute:
            if attribute.name == "to" and attribute.i == FLOAT:
                attribute.i = self.half
            elif attribute.name == "value" and attribute.t.data_type == FLOAT:
                attribute.t.CopyFrom(self._stored(attribute.t, attribute.t.name))
        return own

    def _outside(self, node: onnx.NodeProto) -> onnx.NodeProto:
        own = onnx.NodeProto()
        own.CopyFrom(node)
        for place, name in enumerate(node.input):
            if name in self.leaving:
                own.input[place] = _float(name)
        return own

    def _weights(self) -> Iterator[onnx.TensorProto]:
        asked = {name for node in self.source.node for name in node.input if not in_backbone(node)}
        asked |= {node.input[place] for node in self.source.node for place in STAYS_FLOAT.get(node.op_type, ())
                  if place < len(node.input)}  # fmt: skip
        for tensor in self.source.initializer:
            if tensor.name in self.weights:
                yield self._stored(tensor, _half(tensor.name))
            if tensor.name not in self.weights or tensor.name in asked:
                yield tensor

    def _stored(self, tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
        return numpy_helper.from_array(_rounded(numpy_helper.to_array(tensor), self.half), name)


def _inputs(node: onnx.NodeProto) -> Iterator[tuple[int, str]]:
    """Those that follow the precision."""
    return ((i, name) for i, name in enumerate(node.input) if i not in STAYS_FLOAT.get(node.op_type, ()))


def _rounded(array: np.ndarray, half: int) -> np.ndarray:
    """To the nearest; what is too large for fp16 becomes its largest number."""
    largest = float(ml_dtypes.finfo(DTYPES[half]).max)
    return np.clip(array, -largest, largest).astype(DTYPES[half])


def _half(name: str) -> str:
    return f"{name}_half"


def _float(name: str) -> str:
    return f"{name}_float"


def _cast(name: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [name], [target], name=f"cast_{target}", to=to)
