"""A light model, where overhead is everything: single-photo requests of 16 clients.

One small network with one view. In each round the limit (a bare ONNX Runtime session for each core, batches of 8, no server, no
clients; for comparison also photo by photo), our endpoint and a FastAPI server with a process for each core are measured one
after the other; a figure is the median of the rounds' ratios. `--seconds` of each measurement, `--rounds`.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

from figure import figure, header
from load import networks, sessions, web
from load.endpoint import served
from load.generator import closed_loop, message, open_loop

CLAIM = "a light model behind Triton keeps more than half of what the cores can do, and beats a FastAPI server"
CLIENTS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    header(CLAIM)
    photos = networks.photos(CLIENTS)
    with TemporaryDirectory() as folder:
        graph = networks.write(networks.graph(networks.LIGHT, crops=1), Path(folder) / "light.onnx")
        measure(graph, photos, seconds=args.seconds, rounds=args.rounds)


def measure(graph: Path, photos, *, seconds: float, rounds: int) -> None:
    """All three, in turn."""
    bare = sessions.open_sessions(graph)
    messages, bodies = [message(photo[None]) for photo in photos], [photo.tobytes() for photo in photos]
    golden, cores = photos[:2], len(os.sched_getaffinity(0))
    of_limit, of_alone, of_web, cpu, last = [], [], [], [], 0.0
    with served(graph, labels=networks.names(5000), golden=golden) as ours, web.serving(graph, workers=cores) as ports:
        for number in range(rounds):
            limit = sessions.images_per_second(bare, photos[:8], seconds=seconds)
            alone = sessions.images_per_second(bare, photos[:1], seconds=seconds)
            before = ours.cpu_seconds()
            here = closed_loop(ours.access, messages, clients=CLIENTS, seconds=seconds)
            cpu.append(1000 * (ours.cpu_seconds() - before) / len(here.latencies))
            there = web.closed_loop(ports, bodies, clients=CLIENTS, seconds=seconds)
            print(
                f"round {number}: limit {limit:.0f}/s, photo by photo {alone:.0f}/s; ours: {here}; FastAPI: {there}",
                flush=True,
            )
            of_limit.append(here.per_second / limit)
            of_alone.append(here.per_second / alone)
            of_web.append(here.per_second / there.per_second)
            last = here.per_second
        open_ = open_loop(ours.access, messages, rate=last / 2, seconds=seconds)
        print(f"open loop at half of that: {open_}")
    share, times = statistics.median(of_limit), statistics.median(of_web)
    figure("light_share_of_limit_16_clients", round(share, 3), target=">= 0.55", met=share >= 0.55, baseline=1.0)
    part = statistics.median(of_alone)
    figure("light_share_of_limit_photo_by_photo", round(part, 3), target="told", met=True, baseline=1.0)
    figure("light_over_fastapi_16_clients", round(times, 2), target=">= 1.7", met=times >= 1.7, baseline=1.0)
    figure("light_server_cpu_ms_per_image", round(statistics.median(cpu), 3), target="told", met=True, baseline=None)
    for percent in (50, 99, 99.9):
        value = round(open_.percentile_ms(percent), 2)
        figure(f"light_open_loop_p{percent}_ms_at_half_load", value, target="told", met=True, baseline=None)


if __name__ == "__main__":
    main()
