"""The limit: bare ONNX Runtime sessions on all cores, one thread each, without a server or a request."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

OUTPUTS = ["ids", "probs", "known"]


def open_sessions(graph: Path, *, count: int | None = None) -> list[onnxruntime.InferenceSession]:
    """One session with one thread for each core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    number = count or len(os.sched_getaffinity(0))
    return [onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"]) for _ in range(number)]


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
