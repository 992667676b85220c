"""Waiting of live requests while others send photos in bulk: single photos at a quarter of the server's rate.

For a small and a large network, each with the batches and instances that its curve asks for at 50 ms. Each round measures the
latency of live requests three times: alone, while clients in another process keep the queue full of bulk, and while the same
clients send at the priority of live requests, as if there were one queue. A figure is the median of the rounds' ratios.
`--seconds` of each measurement, `--rounds`.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from figure import figure, header
from load import networks
from load.endpoint import Served, served
from load.generator import Outcome, closed_loop, message, open_loop

from contract import BULK, LIVE
from serving.access import Access
from serving.repository.curve import CURVE, measure

CLAIM = "a photo that a person waits for does not wait behind a folder of photos"
LATENCY_MS = 50.0
NETWORKS = {"light": (networks.LIGHT, 1), "heavy": (networks.HEAVY, 10)}
BULK_CLIENTS = 8  # as many as one stream keeps in flight
MOST = 2.0


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    header(CLAIM)
    for name, (backbones, crops) in NETWORKS.items():
        with TemporaryDirectory() as folder:
            graph = networks.write(networks.graph(backbones, crops=crops), Path(folder) / "graph.onnx")
            curve = measure(graph)
            assert curve is not None, "every machine has a CPU"
            batch, photos = curve.largest_batch(LATENCY_MS), networks.photos(16)
            print(f"{name}: {curve}, batches of {batch}")
            make = served(graph, labels=networks.names(5000), golden=photos[:1], lineage={CURVE: curve.facts()},
                          latency_ms=LATENCY_MS)  # fmt: skip
            with make as ours:
                waits(ours, name, photos, batch=batch, seconds=args.seconds, rounds=args.rounds)


def waits(ours: Served, name: str, photos: np.ndarray, *, batch: int, seconds: float, rounds: int) -> None:
    """Ratios of the 99th percentiles of live requests."""
    single = [message(photo[None]) for photo in photos]
    rate = closed_loop(ours.access, single, clients=4, seconds=seconds / 2).per_second / 4
    ratios: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        alone = open_loop(ours.access, single, rate=rate, seconds=seconds)
        print(f"{name}, round {number}: live alone: {alone}", flush=True)
        for queue, priority in (("bulk", BULK), ("one_queue", LIVE)):
            with bulk(ours.access, message(np.resize(photos, (batch, *photos.shape[1:])), priority=priority)):
                beside = open_loop(ours.access, single, rate=rate, seconds=seconds)
            print(f"beside {queue}: {beside}", flush=True)
            ratios[queue].append(beside.percentile_ms(99) / alone.percentile_ms(99))
    overtaking, waiting = (round(statistics.median(ratios[queue]), 2) for queue in ("bulk", "one_queue"))
    figure(f"{name}_live_p99_beside_bulk", overtaking, target=f"<= {MOST:g}", met=overtaking <= MOST, baseline=waiting)


@contextmanager
def bulk(server: Access, whole: bytes) -> Iterator[None]:
    """Clients in another process that send this request without a pause."""
    over = get_context("spawn").Event()
    child = get_context("spawn").Process(target=_send, args=(server, [whole], over))
    child.start()
    try:
        open_loop(server, [whole], rate=1, seconds=3)  # the child has started by then
        yield
    finally:
        over.set()
        child.join()


def _send(server: Access, messages: Sequence[bytes], over: Event) -> Outcome:
    outcome = Outcome()
    while not over.is_set():
        outcome.add(closed_loop(server, messages, clients=BULK_CLIENTS, seconds=1))
    return outcome


if __name__ == "__main__":
    main()
