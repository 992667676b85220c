"""Memory during half an hour of mixed batch sizes: if it is not flat after the warm-up, a night of traffic ends the server.

Batches of 1 to 8 photos in a random order go to the heavy graph from four clients. Every few seconds the memory of the server
and its backends is added up (shared memory is counted once). The figure is the excess of the mean of the last fifth over the
mean of the first fifth after the warm-up. `--minutes`, `--warm-up` (minutes of them).
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from figure import figure, header
from load import networks
from load.endpoint import Served, served
from load.generator import Outcome, closed_loop, message

CLAIM = "the memory of the endpoint stays flat over mixed batch sizes"
EVERY_S = 5.0
CLIENTS = 4
BATCH = 8


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--warm-up", type=float, default=5.0)
    args = parser.parse_args()
    header(CLAIM)
    photos = networks.photos(BATCH)
    sizes = np.random.default_rng(0).integers(1, BATCH + 1, 500)
    messages = [message(photos[:size]) for size in sizes]
    with TemporaryDirectory() as folder:
        graph = networks.write(networks.graph(networks.HEAVY, crops=10), Path(folder) / "heavy.onnx")
        with served(graph, labels=networks.names(5000), golden=photos[:1]) as ours:
            outcome, samples = watch(ours, messages, minutes=args.minutes)
    flat = [memory for moment, memory in samples if moment >= 60 * args.warm_up]
    fifth = max(1, len(flat) // 5)
    first, last = statistics.mean(flat[:fifth]), statistics.mean(flat[-fifth:])
    growth = last / first - 1
    figure("memory_growth_after_warm_up", round(growth, 4), target="<= 0.02", met=growth <= 0.02, baseline=round(first))
    figure("memory_mb_at_the_end", round(last), target="told", met=True, baseline=round(samples[0][1]))
    figure("memory_minutes", args.minutes, target=">= 30", met=args.minutes >= 30, baseline=None)
    figure("memory_requests_failed", outcome.failed.total(), target=0, met=not outcome.failed, baseline=outcome.sent)


def watch(ours: Served, messages: list[bytes], *, minutes: float) -> tuple[Outcome, list[tuple[float, float]]]:
    """Results of the requests, and (seconds since the start, MB)."""
    samples, began = [], time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(closed_loop, ours.access, messages, clients=CLIENTS, seconds=60 * minutes)
        while not asking.done():
            samples.append((time.monotonic() - began, ours.memory_mb()))
            if len(samples) % 12 == 1:
                print(f"{samples[-1][0] / 60:5.1f} min: {samples[-1][1]:.0f} MB", flush=True)
            time.sleep(EVERY_S)
    print(asking.result(), flush=True)
    return asking.result(), samples


if __name__ == "__main__":
    main()
