"""The limit: bare ONNX Runtime sessions without a server or a request: on all cores, one thread each, or on a GPU."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from serving.repository.accelerator import Accelerator
from serving.repository.runtimes import CUDA, TENSORRT, load_gpu_libraries, provider_of

OUTPUTS = ["ids", "probs", "known"]


def open_sessions(graph: Path, *, count: int | None = None) -> list[onnxruntime.InferenceSession]:
    """One session with one thread for each core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    number = count or len(os.sched_getaffinity(0))
    return [onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"]) for _ in range(number)]


def open_on_gpu(graph: Path, accelerator: Accelerator) -> onnxruntime.InferenceSession | None:
    """A session on an accelerator, whose engines TensorRT builds at the first run of a shape; None if it does not run here."""
    wanted = provider_of(accelerator)
    if wanted not in onnxruntime.get_available_providers():
        return None
    load_gpu_libraries()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # the library may be there without a GPU
    precision = accelerator.name.rpartition("-")[2]
    engines = {f"trt_{precision}_enable": "True"} if precision in ("fp16", "bf16", "int8") else {}
    providers = [(TENSORRT, engines), (CUDA, {})] if accelerator.is_tensorrt else [(CUDA, {})]
    session = onnxruntime.InferenceSession(graph, options, providers=providers)
    return session if session.get_providers()[0] == wanted else None


def images_per_second(
    sessions: list[onnxruntime.InferenceSession], images: NDArray[np.uint8], *, seconds: float
) -> float:
    """Rate for batches of images (B, S, S, 3), computed side by side without a pause."""
    counts = [0] * len(sessions)
    end = time.perf_counter() + seconds

    def work(number: int) -> None:
        while time.perf_counter() < end:
            sessions[number].run(OUTPUTS, {"image": images})
            counts[number] += len(images)

    began = time.perf_counter()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(sessions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def cpu_ms_per_image(
    sessions: list[onnxruntime.InferenceSession], images: NDArray[np.uint8], *, seconds: float
) -> float:
    """Milliseconds of a core for each of the images (B, S, S, 3), while all cores compute such batches."""
    began, used = time.perf_counter(), time.process_time()
    rate = images_per_second(sessions, images, seconds=seconds)
    return 1000 * (time.process_time() - used) / (rate * (time.perf_counter() - began))
