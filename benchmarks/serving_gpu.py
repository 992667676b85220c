"""Graphs on a GPU: our endpoint against bare ONNX Runtime at its best batch, with CUDA and with TensorRT.

The limit is one session without a server, at the batch size at which it computes most photos. Our endpoint has the same largest
batch, and clients send such batches. Each round measures both in turn; a figure is the median of the rounds' ratios. An
accelerator that ONNX Runtime does not find here is left out with a line that says so. `--seconds` of each measurement, `--rounds`.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

import onnxruntime
from figure import figure, header, unmeasured
from load import networks, sessions
from load.endpoint import served
from load.generator import closed_loop, message

from contract import BULK
from serving.repository.accelerator import Accelerator
from serving.repository.curve import SIZES

CLAIM = "on a GPU our endpoint answers nearly as many photos as bare ONNX Runtime at its best batch"
ACCELERATORS = ("cuda", "tensorrt-fp32", "tensorrt-fp16")
NETWORKS = {"light": (networks.LIGHT, 1), "heavy": (networks.HEAVY, 10)}
CLIENTS = 4  # two for each instance: one batch is computed while the next one arrives
LEAST = 0.95


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    header(CLAIM)
    for name, (backbones, crops) in NETWORKS.items():
        with TemporaryDirectory() as folder:
            graph = networks.write(networks.graph(backbones, crops=crops), Path(folder) / "graph.onnx")
            for accelerator in (Accelerator(each, engine_cache=f"{folder}/engines") for each in ACCELERATORS):
                share, session = f"{name}_{accelerator.name}_share_of_limit", sessions.open_on_gpu(graph, accelerator)
                if session is None:
                    unmeasured(share, "ONNX Runtime finds no such device here")
                else:
                    compare(share, graph, accelerator, session, seconds=args.seconds, rounds=args.rounds)


def compare(
    name: str,
    graph: Path,
    accelerator: Accelerator,
    session: onnxruntime.InferenceSession,
    *,
    seconds: float,
    rounds: int,
) -> None:
    """Ratio of both rates, and the rates of the bare session."""
    photos = networks.photos(max(SIZES))
    alone = {size: sessions.images_per_second([session], photos[:size], seconds=seconds / 4) for size in SIZES}
    best = max(alone, key=lambda size: alone[size])
    rates = {size: round(rate) for size, rate in alone.items()}
    print(f"{name}: bare images/s by batch {rates}", flush=True)
    whole, ratios = [message(photos[:best], priority=BULK)], []
    make = served(graph, labels=networks.names(5000), golden=photos[:1], joined=best, accelerator=accelerator)
    with make as ours:
        closed_loop(ours.access, whole, clients=CLIENTS, seconds=seconds / 4)
        for number in range(rounds):
            limit = sessions.images_per_second([session], photos[:best], seconds=seconds)
            here = closed_loop(ours.access, whole, clients=CLIENTS, seconds=seconds)
            print(f"round {number}: limit {limit:.0f}/s, ours {best} x {here}", flush=True)
            ratios.append(best * here.per_second / limit)
    share = round(statistics.median(ratios), 3)
    figure(name, share, target=f">= {LEAST}", met=share >= LEAST, baseline=1.0)


if __name__ == "__main__":
    main()
