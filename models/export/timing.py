"""Time that graphs take per photo, measured side by side.

`python -m models.export.timing --graphs FILE [FILE ...] --out DIR`
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from models.errors import ExportError
from models.export.session import CPU, open_session
from models.training.command import parser_for, run

WARM_UP = 3


def has_provider(provider: str) -> bool:
    """True if ONNX Runtime can use the provider; it lists CUDA even without a GPU."""
    import onnxruntime

    return provider in onnxruntime.get_available_providers() and (provider == CPU or torch.cuda.is_available())


def has_kernels(path: Path) -> bool:
    """True if ONNX Runtime has a CPU operator for every node of a graph."""
    try:
        open_session(path)
    except Exception as error:  # ONNX Runtime's exceptions have no public base class
        if "NOT_IMPLEMENTED" in str(error):
            return False
        raise
    return True


def time_each(graphs: Sequence[Path], *, batch: int = 1, provider: str = CPU, rounds: int = 30) -> list[float]:
    """Median ms per photo of each graph, for a batch of random photos; the graphs take turns.

    On a CPU, this is the CPU time of the single computing thread, which other processes do not affect.

    Raises:
        ExportError: ONNX Runtime fell back to another provider.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(path, options, providers=[provider]) for path in graphs]
    if any(session.get_providers()[0] != provider for session in sessions):
        raise ExportError(
            f"ONNX Runtime cannot load {provider}; install its CUDA libraries, or hide the GPU (CUDA_VISIBLE_DEVICES=)"
        )
    clock = time.thread_time if provider == CPU else time.perf_counter
    shapes = [(batch, *session.get_inputs()[0].shape[1:]) for session in sessions]
    photos = [np.random.default_rng(0).integers(0, 256, shape, np.uint8) for shape in shapes]
    times = np.zeros((WARM_UP + rounds, len(sessions)))
    for row in times:
        for i, session in enumerate(sessions):
            start = clock()
            session.run(["ids", "probs"], {"image": photos[i]})
            row[i] = 1000 * (clock() - start) / batch
    return [float(ms) for ms in np.median(times[WARM_UP:], axis=0)]


def main() -> None:
    """Command line that times graphs on the CPU and writes timing.json, a list in the order of the graphs."""
    parser = parser_for("out", description="Measure the time per photo of ONNX files side by side, on the CPU.")
    parser.add_argument("--graphs", type=Path, nargs="+", required=True, help="ONNX files to measure")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "timing.json").write_text(json.dumps(time_each(args.graphs)), encoding="utf-8")


if __name__ == "__main__":
    run(main)
