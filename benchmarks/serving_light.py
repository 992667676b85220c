"""A light model, where overhead dominates: single-photo requests of 16 clients.

One small network with one view. Each round measures, one after the other: the limit (a bare ONNX Runtime session for each core,
batches of 8, no server, no clients; for comparison also photo by photo), our endpoint with the batches and instances that its
curve asks for, with one instance and with one for each core, and a FastAPI server with a process for each core, as people write it
first and with a queue that has our guarantees. A figure is the median of the rounds' ratios. `--seconds` of each measurement,
`--rounds`.

`--profile` then tells where a request's time goes, in processor time and by the clock, and what HTTP/2 settings of the client
change: rounds of our endpoint and both FastAPI servers in turn, added up.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from figure import figure, header
from load import anatomy, networks, sessions, web
from load.endpoint import Served, served
from load.generator import closed_loop, message, open_loop

from serving.repository.curve import CURVE
from serving.repository.curve import measure as measure_curve

CLAIM = (
    "a light model behind Triton keeps more than half of what the cores can do, and beats a FastAPI server on all cores"
)
CLIENTS = 16
LATENCY_MS = 50.0
STALLED_S = 0.4  # Triton's batcher sleeps for half a second where it misses the end of a batch
TARGETS = {"light_share_of_limit": 0.55, "light_over_fastapi": 1.1, "light_over_fastapi_queued": 1.3}
# options of gRPC, and connections that the clients share (4 without)
HTTP2 = {
    "one_connection": {"channels": 1},
    "connection_per_client": {"channels": CLIENTS},
    "frames_of_1_mb": {"options": [("grpc.http2.max_frame_size", 1 << 20), ("grpc.http2.write_buffer_size", 1 << 20)]},
    "no_bandwidth_probe": {"options": [("grpc.http2.bdp_probe", 0)]},
    "for_throughput": {"options": [("grpc.optimization_target", "throughput")]},
}


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="tell where a request's time goes, too")
    args = parser.parse_args()
    header(CLAIM)
    photos = networks.photos(CLIENTS)
    with TemporaryDirectory() as folder:
        graph = networks.write(networks.graph(networks.LIGHT, crops=1), Path(folder) / "light.onnx")
        measure(graph, photos, seconds=args.seconds, rounds=args.rounds, with_profile=args.profile)


def measure(graph: Path, photos: np.ndarray, *, seconds: float, rounds: int, with_profile: bool) -> None:
    """Measures all of them, in turn."""
    bare, cores = sessions.open_sessions(graph), len(os.sched_getaffinity(0))
    messages, bodies = [message(photo[None]) for photo in photos], [photo.tobytes() for photo in photos]
    make, curve = partial(served, graph, labels=networks.names(5000), golden=photos[:2]), measure_curve(graph)
    assert curve is not None, "every machine has a CPU"
    batch = curve.largest_batch(LATENCY_MS)
    print(f"{curve}: batches of {batch}")
    chosen = {"lineage": {CURVE: curve.facts()}, "latency_ms": LATENCY_MS}
    ratios: dict[str, list[float]] = defaultdict(list)
    stalled, asked = Counter[str](), Counter[str]()
    with (
        make(**chosen) as ours,
        make(instances=1) as single,
        make(instances=cores) as each,
        web.serving(graph, workers=cores) as fastapi,
    ):
        for number in range(rounds):
            limit = sessions.images_per_second(bare, photos[:8], seconds=seconds)
            alone = sessions.images_per_second(bare, photos[:1], seconds=seconds)
            there = web.closed_loop(fastapi.ports, bodies, clients=CLIENTS, seconds=seconds)
            queued = web.closed_loop(fastapi.ports, bodies, clients=CLIENTS, seconds=seconds, path="/queued")
            print(f"round {number}: limit {limit:.0f}/s, photo by photo {alone:.0f}/s", flush=True)
            print(f"FastAPI: {there}\nFastAPI with a queue: {queued}", flush=True)
            for name, endpoint in (("", ours), ("_one_instance", single), ("_instance_per_core", each)):
                before = endpoint.cpu_seconds()
                here = closed_loop(endpoint.access, messages, clients=CLIENTS, seconds=seconds)
                print(f"ours{name}: {here}", flush=True)
                stalled[name] += sum(each > STALLED_S for each in here.latencies)
                asked[name] += len(here.latencies)
                ratios[f"light_share_of_limit{name}"].append(here.per_second / limit)
                ratios[f"light_share_of_limit_photo_by_photo{name}"].append(here.per_second / alone)
                ratios[f"light_over_fastapi{name}"].append(here.per_second / there.per_second)
                ratios[f"light_over_fastapi_queued{name}"].append(here.per_second / queued.per_second)
                cpu = 1000 * (endpoint.cpu_seconds() - before) / len(here.latencies)
                ratios[f"light_server_cpu_ms_per_image{name}"].append(cpu)
        open_ = open_loop(ours.access, messages, rate=there.per_second / 2, seconds=seconds)
        print(f"open loop at half of FastAPI's rate: {open_}")
        if with_profile:
            profile(ours, fastapi, bare, photos, seconds=seconds, rounds=rounds)
            settings(ours, messages, seconds=seconds, rounds=rounds)
    for name, values in ratios.items():
        value, least = round(statistics.median(values), 3), TARGETS.get(name)
        figure(name, value, target=f">= {least}" if least else "told", met=value >= (least or 0), baseline=1.0)
    for name, count in stalled.items():
        figure(f"light_stalled_requests{name}", count, target="told", met=True, baseline=asked[name])
    for percent in (50, 99, 99.9):
        value = round(open_.percentile_ms(percent), 2)
        figure(f"light_open_loop_p{percent}_ms", value, target="told", met=True, baseline=None)


def profile(
    ours: Served, fastapi: web.Processes, bare: list, photos: np.ndarray, *, seconds: float, rounds: int
) -> None:
    """Tells where the time of requests goes at our endpoint and at both FastAPI servers."""
    asked = {"clients": CLIENTS, "seconds": seconds}
    asks = {
        ("ours", "triton"): partial(anatomy.of_ours, ours, photos, **asked),
        ("fastapi_queued", "fastapi"): partial(anatomy.of_fastapi, fastapi, photos, path="/queued", **asked),
        ("fastapi", "fastapi"): partial(anatomy.of_fastapi, fastapi, photos, path="/recognise", **asked),
    }
    total: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for _ in range(rounds):
        for key, ask in asks.items():
            for part, count in ask().items():
                total[key][part] += count
    for (name, server), counts in total.items():
        print(f"profile of {name}: {dict(sorted(counts.items()))}", flush=True)
        anatomy.tell(f"light_profile_{name}", counts, bare, photos, server=server)


def settings(ours: Served, messages: list[bytes], *, seconds: float, rounds: int) -> None:
    """Rates with settings of the client's HTTP/2 over that without, measured in turn."""
    ratios: dict[str, list[float]] = defaultdict(list)
    ask = partial(closed_loop, ours.access, messages, clients=CLIENTS, seconds=seconds)
    for _ in range(rounds):
        usual = ask().per_second
        for name, setting in HTTP2.items():
            ratios[name].append(ask(**setting).per_second / usual)
    for name, values in ratios.items():
        figure(f"light_http2_{name}", round(statistics.median(values), 3), target="told", met=True, baseline=1.0)


if __name__ == "__main__":
    main()
