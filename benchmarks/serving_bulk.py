"""Waiting of live requests while others send photos in bulk: single photos at a quarter of the server's rate.

For a small and a large network, each with the batches and instances that its curve asks for at 50 ms. Each round measures the
latency of live requests four times: alone; while clients in another process keep the queue full of bulk; while the same clients
send at the priority of live requests, as if there were one queue; and beside processes that only take as much of the cores as
bulk did, one for each instance, in bursts as long as a batch, without any request. So the last tells what the cores cost, and
the rest is the queue's. A figure is the median of the rounds' ratios. `--seconds` of each measurement, `--rounds`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from figure import figure, header
from load import networks
from load.anatomy import machine, spent
from load.endpoint import Served, served
from load.generator import Outcome, closed_loop, message, open_loop

from contract import BULK, LIVE
from serving.access import Access
from serving.repository.curve import CURVE, measure
from serving.repository.model_config import TritonConfig

CLAIM = "a photo that a person waits for does not wait behind a folder of photos"
LATENCY_MS = 50.0
NETWORKS = {"light": (networks.LIGHT, 1), "heavy": (networks.HEAVY, 10)}
BULK_CLIENTS = 8  # as many as one stream keeps in flight
MOST = 2.0
START_S = 60.0
PAUSE_S = 0.001  # of a process that has taken its share


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
                waits(
                    ours, name, photos, batch=batch, batch_ms=curve.ms[batch], seconds=args.seconds, rounds=args.rounds
                )


def waits(
    ours: Served, name: str, photos: np.ndarray, *, batch: int, batch_ms: float, seconds: float, rounds: int
) -> None:
    """Ratios of the 99th percentiles of live requests."""
    single = [message(photo[None]) for photo in photos]
    rate = closed_loop(ours.access, single, clients=4, seconds=seconds / 2).per_second / 4
    instances = TritonConfig.parse(ours.repository.configuration()).instances
    ratios: dict[str, list[float]] = defaultdict(list)

    def live(what: str, alone: Outcome | None = None) -> tuple[Outcome, float]:
        """Results of live requests, and the cores that were busy meanwhile."""
        with spent(busy=partial(machine, "busy"), clock=time.perf_counter) as used:
            found = open_loop(ours.access, single, rate=rate, seconds=seconds)
        busy = used["busy"] / used["clock"]
        print(f"{name}, live {what}: {found}; {busy:.2f} cores busy", flush=True)
        if alone:
            ratios[what].append(found.percentile_ms(99) / alone.percentile_ms(99))
        ratios[f"cores {what}"].append(busy)
        return found, busy

    for _ in range(rounds):
        alone, least = live("alone")
        for queue, priority in (("bulk", BULK), ("one_queue", LIVE)):
            with bulk(ours.access, message(np.resize(photos, (batch, *photos.shape[1:])), priority=priority)):
                _, busy = live(queue, alone)
            if queue == "bulk":
                share = max(0.0, busy - least) / instances
        with beside(_hogs, instances, share, batch_ms / 1000):
            live("hogs", alone)
    overtaking, waiting, hogs, *cores = (
        round(statistics.median(ratios[key]), 2) for key in ("bulk", "one_queue", "hogs", "cores hogs", "cores bulk")
    )
    figure(f"{name}_live_p99_beside_bulk", overtaking, target=f"<= {MOST:g}", met=overtaking <= MOST, baseline=waiting)
    figure(f"{name}_live_p99_beside_hogs", hogs, target="told", met=True, baseline=overtaking)
    figure(f"{name}_cores_busy_beside_hogs", cores[0], target="told", met=True, baseline=cores[1])


@contextmanager
def bulk(server: Access, whole: bytes) -> Iterator[None]:
    """Clients in another process that send this request without a pause."""
    with beside(_send, server, [whole]):
        time.sleep(1)  # the queue is full by then
        yield


@contextmanager
def beside(work: Callable[..., None], *arguments: object) -> Iterator[None]:
    """Another process that does `work(*arguments, ready, over)` until `over` is set; yields once it is `ready`."""
    spawn = get_context("spawn")
    ready, over = spawn.Event(), spawn.Event()
    child = spawn.Process(target=work, args=(*arguments, ready, over))
    child.start()
    try:
        assert ready.wait(START_S)
        yield
    finally:
        over.set()
        child.join()


def _send(server: Access, messages: Sequence[bytes], ready: Event, over: Event) -> None:
    ready.set()
    while not over.is_set():
        closed_loop(server, messages, clients=BULK_CLIENTS, seconds=1)


def _hogs(count: int, share: float, burst_s: float, ready: Event, over: Event) -> None:
    """Processes in one session of their own, as the server and its backends are: the kernel may divide cores by sessions."""
    os.setsid()
    hogs = [get_context("fork").Process(target=_spin, args=(share, burst_s, over)) for _ in range(count)]
    for hog in hogs:
        hog.start()
    ready.set()
    for hog in hogs:
        hog.join()


def _spin(share: float, burst_s: float, over: Event) -> None:
    """Takes this share of a core, in bursts."""
    clock, used = time.perf_counter(), time.process_time()
    while not over.is_set():
        if time.process_time() - used > share * (time.perf_counter() - clock):
            time.sleep(PAUSE_S)
            continue
        until = time.process_time() + burst_s
        while time.process_time() < until:
            pass


if __name__ == "__main__":
    main()
