"""Bounds of runtimes: how far an answer may differ from a golden one, and the check before a version is written.

A runtime that computes wrongly answers as fast as any other. So the golden photos are computed on this machine in
several ways: as the CPU serves the graph, which gives the golden answers; plainly, without any optimisation of ONNX
Runtime; and on the GPU that the server would use. The server is compared with the golden answers at every switch, and by
the watchdog (serving.server.control).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from contract import INPUT
from serving.errors import GoldenMismatch
from serving.repository.accelerator import Accelerator
from serving.repository.golden import Golden

RUNTIMES = "runtimes"  # key of the lineage
CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
TYPES = {onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.BFLOAT16: "bf16"}


@dataclass(frozen=True)
class Bound:
    """Largest difference of a probability: `absolute`, and in addition a share of the photo's best probability."""

    absolute: float
    share: float = 0.0

    def tolerance(self, probs: NDArray[Any]) -> float:
        """Largest difference for a photo with these golden probabilities (k,)."""
        return self.absolute + self.share * float(probs.max())

    @property
    def is_strict(self) -> bool:
        """True if every class needs its rank; otherwise classes that are close may swap theirs."""
        return self == EXACT


EXACT = Bound(1e-5)  # three versions of ONNX Runtime differ by less than 1e-6 on a CPU (measured: docs/tasks/export.md)
# Roundings to 8-bit steps fall otherwise in another version: 1e-4 measured there; 1.5 % without optimisations (MobileNetV2).
SAME_INT8 = Bound(1e-3, 0.02)
# Bounds between two ways to compute one graph, by the coarser arithmetic of the two. The shares are a hundred roundings
# to the 10 bits of mantissa that TF32 and fp16 keep, and four times as much for the 7 bits of bf16 and the steps of int8.
# They are chosen from these formats, and not measured on a GPU.
BOUNDS = {
    "fp32": Bound(1e-4),
    "tf32": Bound(1e-4, 0.05),
    "fp16": Bound(1e-4, 0.05),
    "bf16": Bound(1e-4, 0.2),
    "int8": Bound(1e-4, 0.2),
}


def provider_of(accelerator: Accelerator) -> str:
    """ONNX Runtime's name of the accelerator's execution provider."""
    return TENSORRT if accelerator.is_tensorrt else CUDA if accelerator.is_gpu else CPU


def load_gpu_libraries() -> None:
    """Loads the CUDA libraries of installed packages, such as torch's; ONNX Runtime does not look for them there."""
    with redirect_stdout(io.StringIO()):  # it prints what a machine without them lacks
        onnxruntime.preload_dlls()


def bound_of(accelerator: Accelerator, precision: str) -> Bound:
    """Bound between the golden answers and those of an accelerator, for a graph of this precision."""
    if not accelerator.is_gpu:
        return SAME_INT8 if precision == "int8" else EXACT
    arithmetic = accelerator.name.removeprefix("tensorrt-") if accelerator.is_tensorrt else "tf32"
    arithmetic = "tf32" if arithmetic == "fp32" else arithmetic  # TensorRT computes fp32 with TF32, as CUDA does
    return max(BOUNDS[arithmetic], BOUNDS[precision], key=lambda bound: bound.share)


def precision_of(model: onnx.ModelProto) -> str:
    """Coarsest arithmetic of a graph: fp32, fp16, bf16 or int8."""
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return "int8"
    found = {TYPES[tensor.data_type] for tensor in model.graph.initializer if tensor.data_type in TYPES}
    return max(found, default="fp32", key=lambda name: BOUNDS[name].share)


def recorded_precision(lineage: Mapping[str, Any]) -> str:
    """Precision of a version's graph by its lineage; earlier releases do not name it and are compared as fp32."""
    return str(next((each["precision"] for each in lineage.get(RUNTIMES, ())), "fp32"))


def answers(session: onnxruntime.InferenceSession, images: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Ids and probabilities (G, k) of images (G, S, S, 3), computed one by one as in the golden check of the server."""
    found = [session.run(["ids", "probs"], {INPUT: image[None]}) for image in images]
    ids, probs = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return ids, probs


def compare_runtimes(graph: Path, golden: Golden, accelerator: Accelerator, precision: str) -> list[dict[str, Any]]:
    """Entry of the lineage: each way in which this machine computed the golden photos, and the differences.

    TensorRT would first build its engines, and a GPU may be missing here: then only the server's answers are compared.

    Raises:
        GoldenMismatch: a runtime is wrong.
    """
    plain = Golden(golden.image, *answers(_plain(graph), golden.image))
    facts = [_compared(plain, (golden.ids, golden.probs), CPU, precision, BOUNDS[precision])]
    if accelerator.name == "cuda" and (session := _on_gpu(graph)):
        found = answers(session, golden.image)
        facts.append(_compared(golden, found, CUDA, precision, bound_of(accelerator, precision)))
    return facts


def _compared(
    wanted: Golden, found: tuple[NDArray[Any], NDArray[Any]], provider: str, precision: str, bound: Bound
) -> dict[str, Any]:
    """Facts about a provider whose answers do not differ.

    Raises:
        GoldenMismatch: they do.
    """
    runtime = f"ONNX Runtime {onnxruntime.__version__}"
    for number, (ids, probs) in enumerate(zip(*found, strict=True)):
        tolerance = bound.tolerance(wanted.probs[number])
        if differs := wanted.differs(number, ids, probs, tolerance=tolerance, strict=False):
            raise GoldenMismatch(
                f"{runtime} with {provider} computes this graph wrongly: golden image {number}: {differs}; {way_out(provider)}"
            )
    return {
        "runtime": runtime,
        "provider": provider,
        "precision": precision,
        "photos": len(wanted.image),
        "difference": float(np.abs(found[1] - wanted.probs).max()),
        "bound": {"absolute": bound.absolute, "share": bound.share},
    }


def way_out(provider: str) -> str:
    """Advice for a server whose runtime is wrong."""
    if provider == CPU:
        return "publish the float32 graph (export.precision=fp32), or take another version of ONNX Runtime"
    return "serve by the CPU (CLEANSHELF_TRITON_ACCELERATOR=cpu), or publish the float32 graph (export.precision=fp32)"


def _plain(graph: Path) -> onnxruntime.InferenceSession:
    """Session that computes each node as it is written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(graph, options, providers=[CPU])


def _on_gpu(graph: Path) -> onnxruntime.InferenceSession | None:
    """Session on the first GPU; None if ONNX Runtime does not find it."""
    if CUDA not in onnxruntime.get_available_providers():
        return None
    load_gpu_libraries()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # it is listed without a GPU too
    session = onnxruntime.InferenceSession(graph, options, providers=[CUDA])
    return session if session.get_providers()[0] == CUDA else None
