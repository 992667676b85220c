"""Inputs and outputs of an ONNX graph, checked against the endpoint's contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from serving.errors import BadGraph

if TYPE_CHECKING:
    import onnx

ELEMENT_TYPES = {2: "TYPE_UINT8", 7: "TYPE_INT64", 1: "TYPE_FP32"}  # keys: ONNX's TensorProto.DataType
CONTRACT = {
    "image": "TYPE_UINT8",
    "ids": "TYPE_INT64",
    "probs": "TYPE_FP32",
    "known": "TYPE_FP32",
    "embedding": "TYPE_FP32",
}


@dataclass(frozen=True)
class TensorSpec:
    """One input or output, with Triton's name of its type and its dims after the batch dimension."""

    name: str
    data_type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a graph, without the dynamic batch dimension, and the strings of its metadata."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: Mapping[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def read(cls, path: Path) -> Signature:
        """Signature of the graph at `path`; external data is not read.

        Raises:
            BadGraph: not an ONNX file, or its tensors are not image -> ids, probs, known, embedding as in the contract.
        """
        model = load_header(path)
        initialised = {tensor.name for tensor in model.graph.initializer}
        inputs = tuple(_spec(value, path) for value in model.graph.input if value.name not in initialised)
        outputs = tuple(_spec(value, path) for value in model.graph.output)
        signature = cls(inputs, outputs, {entry.key: entry.value for entry in model.metadata_props})
        signature._check(path)
        return signature

    @property
    def size(self) -> int:
        """Side S of the square input in pixels."""
        return self.inputs[0].dims[0]

    @property
    def k(self) -> int:
        """Number of ranked classes in an answer."""
        return next(spec.dims[0] for spec in self.outputs if spec.name == "ids")

    def __str__(self) -> str:
        tensors = " ".join(f"{spec.name}{list(spec.dims)}" for spec in (*self.inputs, *self.outputs))
        return tensors.replace(", ", "x")

    def _check(self, path: Path) -> None:
        found = {spec.name: spec.data_type for spec in (*self.inputs, *self.outputs)}
        if found != CONTRACT or [spec.name for spec in self.inputs] != ["image"]:
            raise BadGraph(f"{path}: the tensors are {found}, the endpoint's contract is {CONTRACT}; export it again")
        outputs = {spec.name: spec.dims for spec in self.outputs}
        height, *rest = self.inputs[0].dims
        square = rest == [height, 3]
        ranked = len(outputs["ids"]) == 1 and outputs["ids"] == outputs["probs"]
        if not (square and ranked and outputs["known"] == (1,) and len(outputs["embedding"]) == 1):
            raise BadGraph(
                f"{path}: the shapes are {self}, want image [SxSx3], ids [k], probs [k], known [1], embedding [d]; "
                "export it again"
            )


def load_header(path: Path) -> onnx.ModelProto:
    """Protobuf of the graph without its external data.

    Raises:
        BadGraph: the file is missing or is not an ONNX file.
    """
    import onnx

    try:
        return onnx.load(path, format="protobuf", load_external_data=False)  # for any file name
    except (OSError, DecodeError) as error:
        raise BadGraph(f"{path} is not an ONNX file that can be read ({error}); export it again") from None


def _spec(value: onnx.ValueInfoProto, path: Path) -> TensorSpec:
    tensor = value.type.tensor_type
    sizes = [dim.dim_value for dim in tensor.shape.dim]  # 0: a dynamic dimension
    dims = tuple(sizes[1:])
    if not sizes or sizes[0] or not all(dim > 0 for dim in dims):
        raise BadGraph(f"{path}: tensor {value.name} needs a dynamic batch dimension, then fixed ones; export it again")
    return TensorSpec(value.name, ELEMENT_TYPES.get(tensor.elem_type, f"ONNX type {tensor.elem_type}"), dims)
