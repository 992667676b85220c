"""Triton's config.pbtxt, made from the signature of an ONNX graph.

The text is written and read through Triton's own protobuf, so it is valid both for the server of the wheel and for
NVIDIA's container with its native onnxruntime backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from contract import BULK, LIVE, REQUEST_PHOTOS
from serving.repository.accelerator import CPU, Accelerator
from serving.signature import Signature, TensorSpec

# ONNX Runtime session options under the native backend's names. No memory patterns: one is kept for each batch size.
SESSION = {"intra_op_thread_count": "1", "enable_mem_arena": "1", "enable_mem_pattern": "0"}
MAX_QUEUE_SIZE = 256
QUEUE_TIMEOUT_MS = 10_000
BULK_PATIENCE = 12


@dataclass(frozen=True)
class TritonConfig:
    """Content of one model's config.pbtxt.

    Args:
        versions: versions to load; a request without a version is answered by the newest.
        max_batch_size: photos that one request may hold.
        joined: photos of several requests that are computed together at most.
        instances: copies of the graph that compute in parallel, one thread each.
        accelerator: the accelerator to run on.
        max_queue_size: live requests that may wait, and as many of bulk; further ones are rejected at once.
        queue_timeout_ms: longest time of a live request in the queue, after which it is rejected; a client may ask for a
            shorter one. Bulk may wait BULK_PATIENCE times as long, while live requests overtake it.
        warmup: run each of `batches` before the model counts as loaded.
        parameters: strings for clients to read, such as `data_version.7`.
    """

    name: str
    versions: tuple[int, ...]
    signature: Signature
    max_batch_size: int = REQUEST_PHOTOS
    joined: int = REQUEST_PHOTOS
    instances: int = 1
    accelerator: Accelerator = CPU
    max_queue_size: int = MAX_QUEUE_SIZE
    queue_timeout_ms: int = QUEUE_TIMEOUT_MS
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
        """Configuration for the graph at `path`; None for the usual number of instances of the accelerator."""
        count = instances or accelerator.instances
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
            dynamic_batching=batching(self.joined, self.max_queue_size, self.queue_timeout_ms),
            model_warmup=[self._warmup(batch) for batch in self.batches if self.warmup],
            response_cache={"enable": False},
        )
        for key, value in {**self.parameters, **SESSION}.items():
            config.parameters[key].string_value = value
        return cast(str, text_format.MessageToString(config, as_utf8=True))

    @property
    def batches(self) -> list[int]:
        """Sizes of the batches that the graph usually computes: 1, those that requests are joined to, the largest request."""
        return sorted({1, *preferred(self.joined), self.max_batch_size})

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
            joined=max(config.dynamic_batching.preferred_batch_size, default=config.max_batch_size),
            instances=config.instance_group[0].count,
            accelerator=Accelerator.read(config.optimization.execution_accelerators.gpu_execution_accelerator),
            max_queue_size=queue.max_queue_size,
            queue_timeout_ms=queue.default_timeout_microseconds // 1000,
            warmup=bool(config.model_warmup),
            parameters=parameters,
        )

    def _execution(self) -> list[dict[str, Any]]:
        shapes = {spec.name: spec.dims for spec in self.signature.inputs}
        return self.accelerator.execution(shapes, usual=self.joined, largest=self.max_batch_size)

    def _warmup(self, batch: int) -> dict[str, Any]:
        inputs = {
            spec.name: {"data_type": spec.data_type, "dims": spec.dims, "random_data": True}
            for spec in self.signature.inputs
        }
        return {"name": f"batch {batch}", "batch_size": batch, "inputs": inputs}


def preferred(joined: int) -> list[int]:
    """Batch sizes up to `joined` that the batcher forms if it can: powers of two, and the largest."""
    return sorted({2**power for power in range(1, joined.bit_length())} | {joined})


def batching(
    joined: int, max_queue_size: int = MAX_QUEUE_SIZE, queue_timeout_ms: int = QUEUE_TIMEOUT_MS
) -> dict[str, Any]:
    """Settings of Triton's dynamic batching, with two priorities; a request without one is live.

    No delay: with one, one instance takes all requests while the others idle.
    """
    return {
        "preferred_batch_size": preferred(joined),
        "max_queue_delay_microseconds": 0,
        "priority_levels": 2,
        "default_priority_level": LIVE,
        "default_queue_policy": _queue(max_queue_size, queue_timeout_ms),
        "priority_queue_policy": {BULK: _queue(max_queue_size, BULK_PATIENCE * queue_timeout_ms)},
    }


def _queue(max_size: int, timeout_ms: int) -> dict[str, Any]:
    return {
        "timeout_action": "REJECT",
        "default_timeout_microseconds": timeout_ms * 1000,
        "allow_timeout_override": True,
        "max_queue_size": max_size,
    }


def _proto(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "data_type": spec.data_type, "dims": spec.dims}


def _unproto(tensor: Any) -> TensorSpec:
    return TensorSpec(tensor.name, model_config_pb2.DataType.Name(tensor.data_type), tuple(tensor.dims))
