"""Time that a graph takes by batch size on the device that serves it, and the sizes that follow from it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from serving.repository.accelerator import CPU, LEAST_INSTANCES, Accelerator
from serving.repository.runtimes import load_gpu_libraries, provider_of

CURVE = "curve"  # key of the lineage
SIZES = (1, 2, 4, 8, 16, 32, 64)
SLOW_MS = 500.0  # batches larger than one that takes so long are not measured
SIZE_S = 0.2  # of measuring one size, if that suffices for LEAST runs
LEAST, MOST = 3, 20  # runs of one size
NEARLY_ALL = 0.9  # of the best throughput; for the last tenth, live requests would wait longer (docs/inside/log.md)
OUTPUTS = ["ids", "probs", "known"]
AWAKE = 3  # instances with which Triton's batcher let no request wait for half a second, on two busy cores


@dataclass(frozen=True)
class Curve:
    """Median time of a batch by its size.

    device: name of the accelerator. ms: time of the whole batch in ms; of one core on a CPU.
    """

    device: str
    ms: Mapping[int, float]

    @classmethod
    def read(cls, lineage: Mapping[str, Any], accelerator: Accelerator) -> Self | None:
        """The curve in a lineage; None if there is none, as in earlier releases, or if it is of another accelerator."""
        found = lineage.get(CURVE)
        if not found or found["device"] != accelerator.name:
            return None
        return cls(found["device"], {int(size): ms for size, ms in found["ms"].items()})

    def facts(self) -> dict[str, Any]:
        """The curve as `read` takes it from a lineage."""
        return {"device": self.device, "ms": {str(size): ms for size, ms in self.ms.items()}}

    def wait_ms(self, size: int) -> float:
        """Longest wait for an answer if all instances compute batches of this size: the running batch, then its own.

        Instances on a CPU have cores of their own; those on a GPU share it.
        """
        return 2 * self.ms[size] * (1 if self.device == CPU.name else LEAST_INSTANCES)

    def instances(self, latency_ms: float) -> int | None:
        """Number of instances for a graph that answers on a CPU within `latency_ms`, at least AWAKE; None, the usual, for others.

        A slower graph loses more to a third batch on two cores than to a rare wait.
        """
        is_fast = self.device == CPU.name and self.wait_ms(min(self.ms)) <= latency_ms
        return max(CPU.instances, AWAKE) if is_fast else None

    def largest_batch(self, latency_ms: float) -> int:
        """The smallest batch with nearly the best throughput that waits of at most `latency_ms` allow; 1 if none fits."""
        fits = [size for size in self.ms if self.wait_ms(size) <= latency_ms] or [min(self.ms)]
        best = max(size / self.ms[size] for size in fits)
        return min(size for size in fits if size / self.ms[size] >= NEARLY_ALL * best)


def measure(graph: Path, accelerator: Accelerator = CPU) -> Curve | None:
    """Curve of a graph, measured in about a second on this machine; None if ONNX Runtime does not run it here so."""
    provider = provider_of(accelerator)
    if accelerator.is_tensorrt or provider not in onnxruntime.get_available_providers():  # engines take minutes
        return None
    if accelerator.is_gpu:
        load_gpu_libraries()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # a GPU may be missing here
    session = onnxruntime.InferenceSession(graph, options, providers=[provider])
    if session.get_providers()[0] != provider:
        return None
    clock = time.thread_time if accelerator == CPU else time.perf_counter
    found: dict[int, float] = {}
    for size in SIZES:
        found[size] = round(_median_ms(session, size, clock=clock), 3)
        if found[size] > SLOW_MS / 2:  # the next one would take longer than SLOW_MS
            break
    return Curve(accelerator.name, found)


def _median_ms(session: onnxruntime.InferenceSession, size: int, *, clock: Any) -> float:
    """Median time of a batch of random photos, after one that is not counted."""
    image = session.get_inputs()[0]
    photos = {image.name: noise(size, image.shape[1])}
    times: list[float] = []
    session.run(OUTPUTS, photos)
    began = time.perf_counter()
    while len(times) < LEAST or (len(times) < MOST and time.perf_counter() < began + SIZE_S):
        start = clock()
        session.run(OUTPUTS, photos)
        times.append(1000 * (clock() - start))
    return statistics.median(times)


def noise(count: int, side: int) -> NDArray[np.uint8]:
    """Random photos (count, side, side, 3); the same numbers give the same photos."""
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
