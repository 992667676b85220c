"""16-bit variants of a graph: its backbones compute in fp16 or bf16.

Resize, normalisation, embedding, classifier, softmax and ranking stay float32, and so do inputs and outputs. So a
variant has the same contract, and products can be added to its classifier as to that of any graph.
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
HALF_OPSET = 22  # the first with bf16 convolutions
SCOPES = "pkg.torch.onnx.name_scopes"  # metadata in which the exporter names the torch modules of a node
BACKBONE = re.compile(r"branches\.\d+\.backbone")
STAYS_FLOAT = {"Resize": (1, 2)}  # positions of inputs that ONNX allows in float32 only: region and scales


def in_backbone(node: onnx.NodeProto) -> bool:
    """True if a node is part of a member's backbone."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "[]")
    return any(BACKBONE.fullmatch(scope) for scope in ast.literal_eval(scopes))


def write_half(source: Path, target: Path, *, precision: str) -> None:
    """Writes the float32 graph `source` with backbones in "fp16" or "bf16".

    Raises:
        ExportError: the graph does not name the nodes of its backbones, or the checker rejects the result.
    """
    model = onnx.load(source)
    model.graph.CopyFrom(Halved(model.graph, HALVES[precision]).graph())
    model.opset_import[0].version = max(model.opset_import[0].version, HALF_OPSET)
    save(model, target)


def write_rounded(source: Path, target: Path, *, precision: str) -> None:
    """Writes a float32 graph that rounds like the graph of `write_half`, to measure its accuracy on a CPU.

    Each operator computes in float32 and its result is rounded, as ONNX Runtime does if it lacks a 16-bit operator.
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
    """Conversion of the backbones of a float32 graph to another type, with casts at their borders."""

    def __init__(self, graph: onnx.GraphProto, half: int) -> None:
        self.source, self.half = graph, half
        inside = [node for node in graph.node if in_backbone(node)]
        if not inside:
            raise ExportError("the graph does not name the nodes of its backbones; export it again")
        typed = (*graph.value_info, *graph.input, *graph.output)
        floats = {value.name for value in typed if value.type.tensor_type.elem_type == FLOAT}
        stored = {tensor.name for tensor in graph.initializer if tensor.data_type == FLOAT}
        self.made = {name for node in inside for name in node.output if name in floats}
        used = {name for node in inside for _, name in _inputs(node)}
        self.weights = used & stored
        self.entering = (used & floats) - self.made - stored
        self.leaving = {name for node in graph.node if not in_backbone(node) for name in node.input} & self.made

    def graph(self) -> onnx.GraphProto:
        """The converted graph, in two precisions."""
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
        """Casts to 16 bits and back after a node, whose outputs are renamed, so that the casts replace them."""
        casts = []
        for i, name in enumerate(node.output):
            if name in self.made:
                node.output[i] = f"{name}_exact"
                casts += [_cast(f"{name}_exact", _half(name), self.half), _cast(_half(name), name, FLOAT)]
        return casts

    def _nodes(self) -> Iterator[onnx.NodeProto]:
        """Nodes in topological order: a cast follows the node whose output it casts."""
        yield from (_cast(value.name, _half(value.name), self.half) for value in self.source.input
                    if value.name in self.entering)  # fmt: skip
        for node in self.source.node:
            yield self._inside(node) if in_backbone(node) else self._outside(node)
            yield from (_cast(name, _half(name), self.half) for name in node.output if name in self.entering)
            yield from (_cast(name, _float(name), FLOAT) for name in node.output if name in self.leaving)

    def _inside(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """Copy of a backbone's node that uses 16-bit tensors."""
        converted = onnx.NodeProto()
        converted.CopyFrom(node)
        for i, name in _inputs(node):
            if name in self.weights or name in self.entering:
                converted.input[i] = _half(name)
        for attribute in converted.attribute:
            if attribute.name == "to" and attribute.i == FLOAT:
                attribute.i = self.half
            elif attribute.name == "value" and attribute.t.data_type == FLOAT:
                attribute.t.CopyFrom(self._stored(attribute.t, attribute.t.name))
        return converted

    def _outside(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """Copy of another node that uses the backbones' outputs as float32."""
        converted = onnx.NodeProto()
        converted.CopyFrom(node)
        for i, name in enumerate(node.input):
            if name in self.leaving:
                converted.input[i] = _float(name)
        return converted

    def _weights(self) -> Iterator[onnx.TensorProto]:
        """Weights in 16 bits for backbones, and in float32 for everything else; some are needed in both."""
        needed = {name for node in self.source.node for name in node.input if not in_backbone(node)}
        needed |= {node.input[i] for node in self.source.node for i in STAYS_FLOAT.get(node.op_type, ())
                   if i < len(node.input)}  # fmt: skip
        for tensor in self.source.initializer:
            if tensor.name in self.weights:
                yield self._stored(tensor, _half(tensor.name))
            if tensor.name not in self.weights or tensor.name in needed:
                yield tensor

    def _stored(self, tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
        return numpy_helper.from_array(_rounded(numpy_helper.to_array(tensor), self.half), name)


def _inputs(node: onnx.NodeProto) -> Iterator[tuple[int, str]]:
    """Positions and names of the inputs that follow the precision of the node."""
    return ((i, name) for i, name in enumerate(node.input) if i not in STAYS_FLOAT.get(node.op_type, ()))


def _rounded(array: np.ndarray, half: int) -> np.ndarray:
    """Array rounded to the nearest 16-bit values; values beyond the range are clipped to it."""
    largest = float(ml_dtypes.finfo(DTYPES[half]).max)
    return np.clip(array, -largest, largest).astype(DTYPES[half])


def _half(name: str) -> str:
    return f"{name}_half"


def _float(name: str) -> str:
    return f"{name}_float"


def _cast(name: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [name], [target], name=f"cast_{target}", to=to)
