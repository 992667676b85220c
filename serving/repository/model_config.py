"""Triton's config.pbtxt, made from the signature of an ONNX graph.

The text is written and read through Triton's own protobuf, so it is valid both for the server of the wheel and for
NVIDIA's container with its native onnxruntime backend.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from serving.repository.accelerator import CPU, Accelerator
from serving.signature import Signature, TensorSpec

# ONNX Runtime session options under the native backend's names. No memory patterns: one is kept for each batch size.
SESSION = {"intra_op_thread_count": "1", "enable_mem_arena": "1", "enable_mem_pattern": "0"}


@dataclass(frozen=True)
class TritonConfig:
    """Content of one model's config.pbtxt.

    Args:
        versions: versions to load; a request without a version is answered by the newest.
        max_batch_size: largest batch of one request, and of several requests computed together.
        instances: copies of the graph that compute in parallel, one thread each (0.96 of the machine's limit).
        accelerator: the accelerator to run on; `from_onnx` makes one instance on a GPU.
        max_queue_size: requests that may wait; further ones are rejected at once.
        queue_timeout_ms: longest time in the queue, after which a request is rejected; a client may ask for a shorter one.
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
        """Configuration for the graph at `path`; `instances` defaults to the cores that this process may use."""
        count = 1 if accelerator.is_gpu else instances or len(os.sched_getaffinity(0))
        signature = Signature.read(path)
        return cls(
            name=name, versions=versions, signature=signature, instances=count, accelerator=accelerator, **settings
        )

    def to_pbtxt(self) -> str:
        """Text of config.pbtxt."""
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
        """Configuration read from the text of a config.pbtxt that `to_pbtxt` made.

        Raises:
            ValueError: the text is not a model configuration.
        """
        try:
            config = text_format.Parse(text, model_config_pb2.ModelConfig())
        except text_format.ParseError as error:
            raise ValueError(f"not a Triton model configuration ({error}); configure the version again") from None
        return cls.from_proto(config)

    @classmethod
    def from_proto(cls, config: Any) -> TritonConfig:
        """Configuration read from Triton's ModelConfig message, as a server returns it."""
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
    """Settings of Triton's dynamic batching. No delay: with one, one instance takes all requests while the others idle."""
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


def _proto(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "data_type": spec.data_type, "dims": spec.dims}


def _unproto(tensor: Any) -> TensorSpec:
    return TensorSpec(tensor.name, model_config_pb2.DataType.Name(tensor.data_type), tuple(tensor.dims))
