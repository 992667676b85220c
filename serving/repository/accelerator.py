"""What computes a model, in the words of Triton's ONNX Runtime backend: the CPU, CUDA, or TensorRT with CUDA behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from serving.errors import BadRequest

Name = Literal["cpu", "cuda", "tensorrt-fp32", "tensorrt-fp16", "tensorrt-bf16", "tensorrt-int8"]
NAMES: tuple[str, ...] = get_args(Name)
# Dynamic batches of many sizes: the arena takes what it needs and no power of two more, and memory stays flat.
CUDA = {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}
YES = "True"  # ONNX Runtime's bindings for Python take no 1 for it


@dataclass(frozen=True)
class Accelerator:
    """Where a model runs.

    Args:
        name: one of NAMES; with TensorRT its precision too.
        memory_limit_bytes: of ONNX Runtime on the GPU; 0 for as much as it needs.
        engine_cache: directory on the server where TensorRT keeps what it built. Engines hold for one GPU, one driver and
            one model, so the directory has to be theirs alone.
    """

    name: str = "cpu"
    memory_limit_bytes: int = 0
    engine_cache: str = ""

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise BadRequest(f"accelerator {self.name!r} is unknown; choose one of {', '.join(NAMES)}")
        if self.is_tensorrt and not self.engine_cache:
            raise BadRequest(f"accelerator {self.name}: needs a directory for its engines; name one")

    @property
    def is_gpu(self) -> bool:
        """Whether a GPU computes."""
        return self.name != "cpu"

    @property
    def is_tensorrt(self) -> bool:
        """Whether engines have to be built first."""
        return self.name.startswith("tensorrt")

    def execution(self, shapes: Mapping[str, tuple[int, ...]], *, max_batch_size: int) -> list[dict[str, Any]]:
        """Triton's `gpu_execution_accelerator` for inputs of these shapes (without the batch), first choice first."""
        chosen = (
            [{"name": "tensorrt", "parameters": self._tensorrt(shapes, max_batch_size)}] if self.is_tensorrt else []
        )
        if self.is_gpu:
            limit = {"gpu_mem_limit": str(self.memory_limit_bytes)} if self.memory_limit_bytes else {}
            chosen.append({"name": "cuda", "parameters": {**CUDA, **limit}})
        return chosen

    @classmethod
    def read(cls, chosen: Any) -> Accelerator:
        """Of Triton's `gpu_execution_accelerator`, as `execution` wrote it."""
        parameters = {entry.name: dict(entry.parameters) for entry in chosen}
        if not parameters:
            return CPU
        limit = int(parameters["cuda"].get("gpu_mem_limit", 0))
        if "tensorrt" not in parameters:
            return cls("cuda", limit)
        engines = parameters["tensorrt"]
        return cls(f"tensorrt-{engines['precision_mode'].lower()}", limit, engines["trt_engine_cache_path"])

    def _tensorrt(self, shapes: Mapping[str, tuple[int, ...]], max_batch_size: int) -> dict[str, str]:
        """One engine for every batch from 1 to the largest: without the profile each new size would build another."""

        def profile(batch: int) -> str:
            return ",".join(f"{name}:{'x'.join(map(str, (batch, *shape)))}" for name, shape in shapes.items())

        return {
            "precision_mode": self.name.removeprefix("tensorrt-").upper(),
            "trt_engine_cache_enable": YES,
            "trt_engine_cache_path": self.engine_cache,
            "trt_timing_cache_enable": YES,
            "trt_timing_cache_path": self.engine_cache,
            "trt_profile_min_shapes": profile(1),
            "trt_profile_opt_shapes": profile(max_batch_size),
            "trt_profile_max_shapes": profile(max_batch_size),
        }


CPU = Accelerator()
