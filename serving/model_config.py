"""From the signature of an ONNX graph to Triton's config.pbtxt.

The text is written and read through Triton's own protobuf, so it is right for the server of the wheel and for NVIDIA's
container with its native onnxruntime backend alike.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from google.protobuf import text_format
from google.protobuf.message import DecodeError
from tritonclient.grpc import model_config_pb2

from serving.accelerator import CPU, Accelerator
from serving.errors import BadGraph

if TYPE_CHECKING:
    import onnx  # only those who read a graph need it; clients of a server do not

ELEMENT_TYPES = {2: "TYPE_UINT8", 7: "TYPE_INT64", 1: "TYPE_FP32"}  # by the number of ONNX's TensorProto.DataType
CONTRACT = {
    "image": "TYPE_UINT8",
    "ids": "TYPE_INT64",
    "probs": "TYPE_FP32",
    "known": "TYPE_FP32",
    "embedding": "TYPE_FP32",
}
# ONNX Runtime's session, in the native backend's words. Memory patterns are kept for every batch size that was ever met.
SESSION = {"intra_op_thread_count": "1", "enable_mem_arena": "1", "enable_mem_pattern": "0"}


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: Triton's type name and the dims after the batch dimension."""

    name: str
    data_type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """What a graph takes and gives, without the leading dynamic batch dimension; `metadata` are its own strings."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: Mapping[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def read(cls, path: Path) -> Signature:
        """The signature of the graph at `path`; only the file itself is read, never its external data.

        Raises:
            BadGraph: not ONNX, or not image -> ids, probs, known, embedding as the endpoint's contract says.
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
        """Side S of the square input, in pixels."""
        return self.inputs[0].dims[0]

    @property
    def k(self) -> int:
        """How many ranked classes an answer holds."""
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
                f"{path}: want image [SxSx3], ids [k], probs [k], known [1], embedding [d]; found {self}; export it again"
            )


@dataclass(frozen=True)
class TritonConfig:
    """One model's config.pbtxt.

    Args:
        versions: the versions to serve, all of them warm; without a version in the request the newest answers.
        max_batch_size: largest batch of one request, and of several requests computed together.
        instances: copies of the graph that compute side by side, one thread each (0.96 of the machine's limit so).
        accelerator: what computes; a GPU has one instance in place of `instances` on the CPU.
        max_queue_size: requests that may wait; the next one is rejected at once.
        queue_timeout_ms: a request that waited longer is rejected; clients may ask for less.
        warmup: run the smallest and the largest batch before the model counts as loaded.
        parameters: strings for clients to read, such as `data_version.7`.
    """

    name: str
    versions: tuple[int, ...]
    signature: Signature
    max_batch_size: int = 8
    instances: int = 1
    accelerator: Accelerator = CPU
    max_queue_size: int = 256
    queue_timeout_ms: int = 10_000
    warmup: bool = True
    parameters: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_onnx(
        cls,
        path: Path,
        *,
        versions: tuple[int, ...],
        name: str = "products",
        instances: int | None = None,
        accelerator: Accelerator = CPU,
        **settings: Any,
    ) -> TritonConfig:
        """The configuration for the graph at `path`; `instances` defaults to the cores this process may use."""
        count = 1 if accelerator.is_gpu else instances or len(os.sched_getaffinity(0))
        signature = Signature.read(path)
        return cls(
            name=name, versions=versions, signature=signature, instances=count, accelerator=accelerator, **settings
        )

    def to_pbtxt(self) -> str:
        """The text of config.pbtxt."""
        config = model_config_pb2.ModelConfig(
            name=self.name,
            backend="onnxruntime",
            default_model_filename="model.onnx",
            max_batch_size=self.max_batch_size,
            version_policy={"specific": {"versions": self.versions}},
            input=[_proto(spec) for spec in self.signature.inputs],
            output=[_proto(spec) for spec in self.signature.outputs],
            instance_group=[{"kind": "KIND_GPU" if self.accelerator.is_gpu else "KIND_CPU", "count": self.instances}],
            optimization={"execution_accelerators": {"gpu_execution_accelerator": self._execution()}},
            dynamic_batching=batching(self.max_batch_size, self.max_queue_size, self.queue_timeout_ms),
            model_warmup=[self._warmup(batch) for batch in sorted({1, self.max_batch_size}) if self.warmup],
            response_cache={"enable": False},
        )
        for key, value in {**self.parameters, **SESSION}.items():
            config.parameters[key].string_value = value
        return cast(str, text_format.MessageToString(config, as_utf8=True))

    @classmethod
    def parse(cls, text: str) -> TritonConfig:
        """What `to_pbtxt` wrote, read back.

        Raises:
            ValueError: not the text of a model configuration.
        """
        try:
            config = text_format.Parse(text, model_config_pb2.ModelConfig())
        except text_format.ParseError as error:
            raise ValueError(f"not a Triton model configuration ({error}); configure the version again") from None
        return cls.from_proto(config)

    @classmethod
    def from_proto(cls, config: Any) -> TritonConfig:
        """Triton's ModelConfig message, as a server returns it."""
        queue = config.dynamic_batching.default_queue_policy
        parameters = {key: value.string_value for key, value in config.parameters.items() if key not in SESSION}
        return cls(
            name=config.name,
            versions=tuple(config.version_policy.specific.versions),
            signature=Signature(tuple(map(_unproto, config.input)), tuple(map(_unproto, config.output))),
            max_batch_size=config.max_batch_size,
            instances=config.instance_group[0].count,
            accelerator=Accelerator.read(config.optimization.execution_accelerators.gpu_execution_accelerator),
            max_queue_size=queue.max_queue_size,
            queue_timeout_ms=queue.default_timeout_microseconds // 1000,
            warmup=bool(config.model_warmup),
            parameters=parameters,
        )

    def _execution(self) -> list[dict[str, Any]]:
        shapes = {spec.name: spec.dims for spec in self.signature.inputs}
        return self.accelerator.execution(shapes, max_batch_size=self.max_batch_size)

    def _warmup(self, batch: int) -> dict[str, Any]:
        inputs = {
            spec.name: {"data_type": spec.data_type, "dims": spec.dims, "random_data": True}
            for spec in self.signature.inputs
        }
        return {"name": f"batch {batch}", "batch_size": batch, "inputs": inputs}


def batching(max_batch_size: int, max_queue_size: int = 256, queue_timeout_ms: int = 10_000) -> dict[str, Any]:
    """Triton's dynamic batching, without a delay: with one, a single instance takes every request and the others idle."""
    sizes = {2**power for power in range(1, max_batch_size.bit_length()) if 2**power < max_batch_size}
    return {
        "preferred_batch_size": sorted({*sizes, max_batch_size}),
        "max_queue_delay_microseconds": 0,
        "default_queue_policy": {
            "timeout_action": "REJECT",
            "default_timeout_microseconds": queue_timeout_ms * 1000,
            "allow_timeout_override": True,
            "max_queue_size": max_queue_size,
        },
    }


def load_header(path: Path) -> onnx.ModelProto:
    """The graph's protobuf without its external data.

    Raises:
        BadGraph: the file is missing or is not ONNX.
    """
    import onnx

    try:
        return onnx.load(path, format="protobuf", load_external_data=False)  # whatever the file is called
    except (OSError, DecodeError) as error:
        raise BadGraph(f"{path} is not an ONNX file that can be read ({error}); export it again") from None


def _spec(value: onnx.ValueInfoProto, path: Path) -> TensorSpec:
    tensor = value.type.tensor_type
    sizes = [dim.dim_value for dim in tensor.shape.dim]  # 0 where a dimension is dynamic
    dims = tuple(sizes[1:])
    if not sizes or sizes[0] or not all(dim > 0 for dim in dims):
        raise BadGraph(f"{path}: {value.name} must have a dynamic batch dimension, then fixed ones; export it again")
    return TensorSpec(value.name, ELEMENT_TYPES.get(tensor.elem_type, f"ONNX type {tensor.elem_type}"), dims)


def _proto(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "data_type": spec.data_type, "dims": spec.dims}


def _unproto(tensor: Any) -> TensorSpec:
    return TensorSpec(tensor.name, model_config_pb2.DataType.Name(tensor.data_type), tuple(tensor.dims))
