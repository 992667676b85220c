"""How long two graphs take for the same photos, side by side."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.errors import ExportError
from models.export.session import open_session

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
WARM_UP = 3


def has_provider(provider: str) -> bool:
    """Whether ONNX Runtime computes there; it lists CUDA without a GPU, too."""
    import onnxruntime

    return provider in onnxruntime.get_available_providers() and (provider == CPU or torch.cuda.is_available())


def has_kernels(path: Path) -> bool:
    """Whether the CPU has an operator for every node of a graph."""
    try:
        open_session(path)
    except Exception as error:  # ONNX Runtime's own exceptions share no public base
        if "NOT_IMPLEMENTED" in str(error):
            return False
        raise
    return True


def time_both(
    one: Path, other: Path, photos: NDArray[np.uint8], *, provider: str = CPU, rounds: int = 30
) -> tuple[float, float]:
    """Median ms per photo of each graph, for a batch (B, S, S, 3); they are asked in turns.

    On a CPU it is the time of the one thread that computes, in which other processes have no part.

    Raises:
        ExportError: ONNX Runtime fell back to another provider.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(path, options, providers=[provider]) for path in (one, other)]
    if any(session.get_providers()[0] != provider for session in sessions):
        raise ExportError(f"ONNX Runtime cannot load {provider}; install its CUDA libraries, or hide the GPU")
    clock = time.thread_time if provider == CPU else time.perf_counter
    taken = np.zeros((WARM_UP + rounds, 2))
    for row in taken:
        for place, session in enumerate(sessions):
            start = clock()
            session.run(["ids", "probs"], {"image": photos})
            row[place] = 1000 * (clock() - start) / len(photos)
    first, second = np.median(taken[WARM_UP:], axis=0)
    return float(first), float(second)
