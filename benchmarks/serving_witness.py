"""Witness of our load generator: NVIDIA's perf_analyzer asks the same server, in turn with it.

Both ask for single photos of noise and all outputs over gRPC, with as many clients, each of which asks again as soon as it has
its answer. A figure is the median of the rounds' ratios, ours over perf_analyzer's, for the small and the fused network. Both
share the cores with the server, so the cores that each takes are told too.

`--perf-analyzer COMMAND` runs it; it needs glibc 2.38 or newer. On an older system:

    debootstrap --variant=minbase trixie /tmp/trixie
    pip download --no-deps --only-binary :all: --platform manylinux_2_38_x86_64 perf-analyzer
    python -m zipfile -e perf_analyzer-*.whl /tmp/trixie/witness
    chmod +x /tmp/trixie/witness/perf_analyzer/bin/perf_analyzer
    python benchmarks/serving_witness.py --perf-analyzer "chroot /tmp/trixie /witness/perf_analyzer/bin/perf_analyzer"

`--seconds` of each measurement, `--rounds`, `--clients`.
"""

from __future__ import annotations

import argparse
import re
import resource
import shlex
import shutil
import statistics
import subprocess
import time
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

from figure import figure, header, unmeasured
from load import networks
from load.anatomy import spent
from load.endpoint import served
from load.generator import Outcome, closed_loop, message

from contract import OUTPUTS
from serving.access import Access
from serving.repository.curve import CURVE, measure

CLAIM = "our load generator and NVIDIA's perf_analyzer measure the same"
NETWORKS = {"light": (networks.LIGHT, 1), "heavy": (networks.HEAVY, 10)}
LATENCY_MS = 50.0
APART = 0.05
WINDOWS = 3  # that perf_analyzer needs at least
HOW = "it is not here; give --perf-analyzer COMMAND, the first lines of this file say how to install it"
# figure -> where perf_analyzer's output has it
NUMBERS = {
    "per_second": r"Throughput: ([\d.]+) infer/sec",
    "p50_us": r"p50 latency: (\d+) usec",
    "p99_us": r"p99 latency: (\d+) usec",
}


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--perf-analyzer", default=shutil.which("perf_analyzer") or "")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=16)
    args = parser.parse_args()
    header(CLAIM)
    command = shlex.split(args.perf_analyzer)
    if not command:
        unmeasured("ratios to perf_analyzer", HOW)
        return
    for name, (backbones, crops) in NETWORKS.items():
        with TemporaryDirectory() as folder:
            graph = networks.write(networks.graph(backbones, crops=crops), Path(folder) / "graph.onnx")
            compare(name, graph, command, seconds=args.seconds, rounds=args.rounds, clients=args.clients)


def compare(name: str, graph: Path, command: list[str], *, seconds: float, rounds: int, clients: int) -> None:
    """Ratios of throughput and latencies."""
    photos, curve = networks.photos(clients), measure(graph)
    assert curve is not None, "every machine has a CPU"
    messages = [message(photo[None], outputs=OUTPUTS) for photo in photos]
    ratios: dict[str, list[float]] = defaultdict(list)
    cores, their_cores = list[float](), list[float]()
    make = served(graph, labels=networks.names(5000), golden=photos[:1], lineage={CURVE: curve.facts()},
                  latency_ms=LATENCY_MS)  # fmt: skip
    with make as endpoint:
        closed_loop(endpoint.access, messages, clients=clients, seconds=1)
        for number in range(rounds):
            with spent(cpu=time.process_time, clock=time.perf_counter) as mine:
                ours = numbers(closed_loop(endpoint.access, messages, clients=clients, seconds=seconds))
            with spent(cpu=_children_cpu, clock=time.perf_counter) as its:
                theirs = analysed(command, endpoint.access, seconds=seconds, clients=clients)
            for each, used in ((cores, mine), (their_cores, its)):
                each.append(used["cpu"] / used["clock"])
            print(f"{name}, round {number}: ours {ours}, perf_analyzer {theirs}", flush=True)
            for key, value in theirs.items():
                ratios[key].append(ours[key] / value)
    for key, values in ratios.items():
        ratio = round(statistics.median(values), 3)
        is_near = abs(ratio - 1) <= APART
        figure(f"{name}_witness_{key}", ratio, target=f"within {APART:.0%} of 1", met=is_near, baseline=1.0)
    here, there = round(statistics.median(cores), 3), round(statistics.median(their_cores), 3)
    figure(f"{name}_witness_cores_of_clients", here, target="told", met=True, baseline=there)


def _children_cpu() -> float:
    """Processor time of children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def numbers(outcome: Outcome) -> dict[str, float]:
    """Figures of our generator under the names of NUMBERS."""
    assert not outcome.failed
    assert not outcome.rejected
    tails = {f"p{percent}_us": 1000 * outcome.percentile_ms(percent) for percent in (50, 99)}
    return {"per_second": round(outcome.per_second, 1), **{name: round(value) for name, value in tails.items()}}


def analysed(command: list[str], access: Access, *, seconds: float, clients: int) -> dict[str, float]:
    """Figures of perf_analyzer over `WINDOWS` windows that take as many seconds together, however much they differ."""
    tokens = [part for key, value in access.headers().items() for part in ("-H", f"{key}:{value}")]
    options = [
        "-m", "products", "-i", "grpc", "-u", access.address, "--concurrency-range", str(clients),
        "--measurement-interval", str(round(1000 * seconds / WINDOWS)), "--stability-percentage", "900",
        "--input-data", "random",
    ]  # fmt: skip
    done = subprocess.run([*command, *options, *tokens], capture_output=True, text=True, check=False, timeout=300)
    found = {name: re.search(pattern, done.stdout) for name, pattern in NUMBERS.items()}
    if not all(found.values()):
        raise SystemExit(f"perf_analyzer gave no figures: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return {name: float(match[1]) for name, match in found.items() if match}


if __name__ == "__main__":
    main()
