"""Three members with ten crops in one graph: against bare sessions, a Triton ensemble of the same members, and torch in Python.

In each round all are measured one after the other on the same machine; a figure is the median of the rounds' ratios. The
limit is a bare ONNX Runtime session for each core, without a server or clients. Processor time, of server and clients, tells
whether what is missing is work or pauses; the idle share of the cores counts the latter. `--seconds` of each measurement,
`--rounds`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from figure import figure, header
from load import eager, ensemble, networks, sessions
from load.anatomy import machine, spent
from load.endpoint import Served, served
from load.generator import Outcome, closed_loop, message
from tritonclient import grpc

from models.export.graph import DeployGraph
from serving.wire import connect

CLAIM = "one fused graph behind Triton is as fast as bare ONNX Runtime, and faster than the ensemble and torch"
CLIENTS = 4
PLAIN, TUNED = ENSEMBLES = ("ensemble", "tuned_ensemble")
TARGETS = (
    ("fused_share_of_limit", "limit", 0.96),
    ("fused_over_triton_ensemble", PLAIN, 1.35),
    ("fused_over_torch_eager", "eager True", 4.0),
)
TOLD = (
    ("fused_over_tuned_triton_ensemble", TUNED),
    ("fused_over_torch_eager_crop_by_crop", "eager False"),
    ("fused_cpu_per_image_with_clients_over_bare", "cpu"),
)
used = partial(spent, clock=time.perf_counter, idle=partial(machine, "idle"))


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    header(CLAIM)
    made, cores = networks.graph(networks.HEAVY, crops=10), len(os.sched_getaffinity(0))
    with TemporaryDirectory() as folder:
        graph = networks.write(made, Path(folder) / "heavy.onnx")
        models = {
            key: files
            for name in ENSEMBLES
            for key, files in ensemble.write(
                made, Path(folder), name=name, instances=cores, batch=8, tuned=name == TUNED
            ).items()
        }
        photos = networks.photos(8)
        with served(graph, labels=networks.names(made.num_classes), golden=photos[:1], extra=models) as ours:
            load(ours, models)
            check(ours, made, photos)
            measure(ours, graph, made, photos, seconds=args.seconds, rounds=args.rounds)


def load(ours: Served, models: dict) -> None:
    """Makes the server load the ensemble too; its members first."""
    with connect(ours.access) as client:
        for name in models:
            client.load_model(name)


def check(ours: Served, made: DeployGraph, photos: np.ndarray) -> None:
    """Checks that all three give the same answers, so that their speeds compare."""
    tensor = grpc.InferInput("image", [1, *photos.shape[1:]], "UINT8").set_data_from_numpy(photos[:1])
    with connect(ours.access) as client:
        fused, *split = (client.infer(name, [tensor]).as_numpy("probs") for name in ("products", *ENSEMBLES))
    _, slow = eager.answer(made, photos[0])
    assert all(np.allclose(fused, each, atol=1e-6) for each in split)
    assert np.allclose(fused[0], slow.detach().numpy(), atol=1e-3), "Pillow rounds to 8 bit"


def measure(ours: Served, graph: Path, made: DeployGraph, photos: np.ndarray, *, seconds: float, rounds: int) -> None:
    """Ratios of all six, measured in turn."""
    bare = sessions.open_sessions(graph)
    asked = {name: [message(photo[None], model=name, outputs=("ids", "probs")) for photo in photos]
             for name in ("products", *ENSEMBLES)}  # fmt: skip
    ratios: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        with used(cpu=time.process_time) as alone:
            limit = sessions.images_per_second(bare, photos[:1], seconds=seconds)
        with used(cpu=lambda: time.process_time() + ours.cpu_seconds()) as full:
            fused, cpu = under_load(ours, asked["products"], seconds=seconds)
        print(f"round {number}: limit {limit:.2f}/s; fused, {cpu:.0f} ms of CPU an image: {fused}", flush=True)
        ratios["limit"].append(fused.per_second / limit)
        bare_cpu, served_cpu = alone["cpu"] / (limit * alone["clock"]), full["cpu"] / len(fused.latencies)
        print(f"CPU s an image: bare {bare_cpu:.4f}; ours with clients {served_cpu:.4f}", flush=True)
        ratios["cpu"].append(served_cpu / bare_cpu)
        for name, each in (("idle alone", alone), ("idle", full)):
            ratios[name].append(each["idle"] / (each["clock"] * (os.cpu_count() or 1)))
        for name in ENSEMBLES:
            split, split_cpu = under_load(ours, asked[name], seconds=seconds)
            print(f"{name}, {split_cpu:.0f} ms: {split}", flush=True)
            ratios[name].append(fused.per_second / split.per_second)
            ratios[f"{name} CPU"].append(cpu / split_cpu)
        for at_once in (True, False):
            slow = eager.images_per_second(made, photos, seconds=seconds, at_once=at_once)
            print(f"torch, crops {'at once' if at_once else 'one by one'}: {slow:.2f}/s", flush=True)
            ratios[f"eager {at_once}"].append(fused.per_second / slow)
    middle = {name: round(statistics.median(values), 3) for name, values in ratios.items()}
    for name, key, least in TARGETS:
        figure(name, middle[key], target=f">= {least}", met=middle[key] >= least, baseline=1.0)
    for name in ENSEMBLES:
        share = middle[f"{name} CPU"]
        figure(f"fused_cpu_per_image_to_{name}", share, target="< 1", met=share < 1, baseline=1.0)
    for name, key in TOLD:
        figure(name, middle[key], target="told", met=True, baseline=1.0)
    figure("fused_idle_share_of_cores", middle["idle"], target="told", met=True, baseline=middle["idle alone"])


def under_load(ours: Served, messages: list[bytes], *, seconds: float) -> tuple[Outcome, float]:
    """Results of the clients, and the server's milliseconds of processor time per image."""
    before = ours.cpu_seconds()
    outcome = closed_loop(ours.access, messages, clients=CLIENTS, seconds=seconds)
    return outcome, 1000 * (ours.cpu_seconds() - before) / max(1, len(outcome.latencies))


if __name__ == "__main__":
    main()
