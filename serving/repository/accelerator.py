"""Accelerators of Triton's ONNX Runtime backend: the CPU, CUDA, or TensorRT with CUDA as its fallback."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from serving.errors import BadRequest

Name = Literal["cpu", "cuda", "tensorrt-fp32", "tensorrt-fp16", "tensorrt-bf16", "tensorrt-int8"]
NAMES: tuple[str, ...] = get_args(Name)
# kSameAsRequested: batch sizes vary, and an arena that grows to powers of two would take ever more memory.
CUDA = {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}
# With a single instance, Triton's batcher can miss the end of a batch, and requests then wait half a second
# (docs/tasks/serve.md#batches-and-instances). A second instance wakes it up.
LEAST_INSTANCES = 2
YES = "True"  # ONNX Runtime's Python bindings do not accept "1"


@dataclass(frozen=True)
class Accelerator:
    """Accelerator that a model runs on.

    Args:
        name: one of NAMES; those of TensorRT include the precision.
        memory_limit_bytes: GPU memory that ONNX Runtime may use; 0 for no limit.
        engine_cache: directory on the server where TensorRT keeps its engines. Engines are valid for one GPU, one driver
            and one model, so each combination needs its own directory.
    """

    name: str = "cpu"
    memory_limit_bytes: int = 0
    engine_cache: str = ""

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise BadRequest(f"accelerator {self.name!r} is unknown; choose one of {', '.join(NAMES)}")
        if self.is_tensorrt and not self.engine_cache:
            raise BadRequest(f"accelerator {self.name}: the directory for its engines is missing; name one")

    @property
    def is_gpu(self) -> bool:
        """True if the model runs on a GPU."""
        return self.name != "cpu"

    @property
    def instances(self) -> int:
        """Copies of a graph unless someone says otherwise: one for each core that this process may use, or two on a GPU."""
        return max(LEAST_INSTANCES, 0 if self.is_gpu else len(os.sched_getaffinity(0)))

    @property
    def is_tensorrt(self) -> bool:
        """True if TensorRT has to build engines first."""
        return self.name.startswith("tensorrt")

    def execution(self, shapes: Mapping[str, tuple[int, ...]], *, usual: int, largest: int) -> list[dict[str, Any]]:
        """Triton's `gpu_execution_accelerator`, first choice first.

        Args:
            shapes: of the inputs, without the batch.
            usual, largest: batch sizes that TensorRT optimises for, and allows.
        """
        chosen = (
            [{"name": "tensorrt", "parameters": self._tensorrt(shapes, usual, largest)}] if self.is_tensorrt else []
        )
        if self.is_gpu:
            limit = {"gpu_mem_limit": str(self.memory_limit_bytes)} if self.memory_limit_bytes else {}
            chosen.append({"name": "cuda", "parameters": {**CUDA, **limit}})
        return chosen

    @classmethod
    def read(cls, chosen: Any) -> Accelerator:
        """Accelerator described by Triton's `gpu_execution_accelerator`, as `execution` wrote it."""
        parameters = {entry.name: dict(entry.parameters) for entry in chosen}
        if not parameters:
            return CPU
        limit = int(parameters["cuda"].get("gpu_mem_limit", 0))
        if "tensorrt" not in parameters:
            return cls("cuda", limit)
        engines = parameters["tensorrt"]
        return cls(f"tensorrt-{engines['precision_mode'].lower()}", limit, engines["trt_engine_cache_path"])

    def _tensorrt(self, shapes: Mapping[str, tuple[int, ...]], usual: int, largest: int) -> dict[str, str]:
        """Parameters for one engine for all batch sizes; without the profile TensorRT would build one for each size."""

        def profile(batch: int) -> str:
            return ",".join(f"{name}:{'x'.join(map(str, (batch, *shape)))}" for name, shape in shapes.items())

        return {
            "precision_mode": self.name.removeprefix("tensorrt-").upper(),
            "trt_engine_cache_enable": YES,
            "trt_engine_cache_path": self.engine_cache,
            "trt_timing_cache_enable": YES,
            "trt_timing_cache_path": self.engine_cache,
            "trt_profile_min_shapes": profile(1),
            "trt_profile_opt_shapes": profile(usual),
            "trt_profile_max_shapes": profile(largest),
        }


CPU = Accelerator()
