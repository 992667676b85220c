"""Requests lost while versions change: clients ask without a pause during switches, rollbacks, broken versions and a full queue.

The graph has the batches and instances that its curve asks for. The target is none of at least 40,000, and no wait longer than
twice the 99th percentile before the changes; the baseline of that ratio is the longest wait before them. Requests that are refused
at once because the queue is full are counted apart: a client without bounds of its own gets that answer, and it may ask again.

Each phase of a switch is timed, with the share of the cores that new processes took and that stayed idle; each slow request counts
for the phase that it overlaps most. The clients are a process of their own, so that the switching one cannot hold them up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
from collections import Counter
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from figure import figure, header
from load import networks
from load.endpoint import Served, served
from load.generator import Outcome, closed_loop, message, open_loop
from load.phases import Switching, phase_of

from durable import sha256
from serving.errors import ServingError
from serving.repository.curve import CURVE
from serving.repository.curve import measure as measure_curve

CLAIM = "no request is lost by a switch, a rollback, a broken version or a client that sends more than can be answered"
CLIENTS = 8
FLOOD = 3.0  # times the rate that the server can answer
BATCH = 8
LATENCY_MS = 50.0  # for which batches and instances are chosen
LONGEST = 2.0  # times the 99th percentile before the changes
BETWEEN = "between_phases"
CONV = b"\x22\x04Conv"  # operator of a node, as protobuf writes it


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=15.0, help="seconds of asking in each part; a part goes on until it is done"
    )
    parser.add_argument("--requests", type=int, default=40_000, help="requests to send at least while versions change")
    args = parser.parse_args()
    header(CLAIM)
    photos = networks.photos(BATCH)
    with TemporaryDirectory() as folder:
        graph = networks.write(networks.graph(networks.LIGHT, crops=1), Path(folder) / "light.onnx")
        curve = measure_curve(graph)
        assert curve is not None, "every machine has a CPU"
        chosen = {"lineage": {CURVE: curve.facts()}, "latency_ms": LATENCY_MS}
        with served(graph, labels=networks.names(5000), golden=photos[:2], versions=2, **chosen) as ours:
            with asking(ours, photos, seconds=args.seconds) as (answers, _):
                before = answers.result()
            print(f"before: {before}", flush=True)
            control = Switching(ours)
            with control:
                total, changes = during_changes(ours, control, photos, seconds=args.seconds, least=args.requests)
            flood, others = during_a_flood(ours, photos, seconds=args.seconds)
    sent, lost = total.sent + others.sent, total.failed.total() + others.failed.total() + flood.failed.total()
    for name, count in changes.items():
        figure(f"changes_{name}", count, target=">= 1", met=count > 0, baseline=None)
    figure(
        "requests_sent_by_well_behaved_clients",
        sent,
        target=f">= {args.requests}",
        met=sent >= args.requests,
        baseline=None,
    )
    figure("requests_failed", lost, target=0, met=lost == 0, baseline=None)
    figure("requests_rejected_during_changes", total.rejected, target=0, met=total.rejected == 0, baseline=None)
    figure("requests_rejected_of_the_flood", flood.rejected, target="told", met=True, baseline=flood.sent)
    figure("requests_rejected_of_others_in_the_flood", others.rejected, target="told", met=True, baseline=others.sent)
    longest, usual = (round(ms, 1) for ms in (total.percentile_ms(100), before.percentile_ms(99)))
    figure("longest_wait_during_changes_ms", longest, target="told", met=True, baseline=usual)
    ratio = round(longest / usual, 2)
    figure("longest_wait_during_changes_over_p99_before", ratio, target=f"<= {LONGEST:g}", met=ratio <= LONGEST,
           baseline=round(before.percentile_ms(100) / usual, 2))  # fmt: skip
    tell_phases(control, total, slow_s=LONGEST * before.percentile_ms(99) / 1000)


def tell_phases(control: Switching, total: Outcome, *, slow_s: float) -> None:
    """Prints figures of each phase, and of requests between changes: its time, its share of the cores, its slow requests."""
    waits: dict[str, list[float]] = {name: [] for name in control.names()}
    waits |= {BETWEEN: []}
    for latency, end in zip(total.latencies, total.ends, strict=True):
        waits[phase_of(control.phases, end - latency, end) or BETWEEN].append(latency)
    for name, found in waits.items():
        phases = [phase for phase in control.phases if phase.name == name]
        parts = {"s": "seconds", "new_processes_share_of_cores": "new", "idle_share_of_cores": "idle"} if phases else {}
        for unit, field in parts.items():
            middle = round(statistics.median(getattr(phase, field) for phase in phases), 3)
            figure(f"{name}_{unit}", middle, target="told", met=True, baseline=None)
        slow = sum(latency > slow_s for latency in found)
        figure(f"{name}_slow_requests", slow, target="told", met=True, baseline=len(found))
        if found:
            figure(f"{name}_longest_ms", round(1000 * max(found), 1), target="told", met=True, baseline=None)


def during_changes(
    ours: Served, control: Switching, photos: np.ndarray, *, seconds: float, least: int
) -> tuple[Outcome, Counter[str]]:
    """Switches, rolls back and tries a broken version, again and again, while clients ask."""
    changes: Counter[str] = Counter()
    broken = break_a_version(ours, photos)
    total = Outcome()
    while total.sent < least:
        with asking(ours, photos, seconds=seconds) as (answers, over):
            while not over.is_set():
                control.switch(ours.repository, 1)
                changes["rollback"] += 1
                try:
                    control.switch(ours.repository, broken)
                except ServingError:
                    changes["broken"] += 1
                control.switch(ours.repository, 2)
                changes["switch"] += 1
        total.add(answers.result())
        print(f"{dict(changes)}: {total}; versions {dict(total.versions)}", flush=True)
    return total, changes


def during_a_flood(ours: Served, photos: np.ndarray, *, seconds: float) -> tuple[Outcome, Outcome]:
    """Results of one client that sends more than can be answered, and of the others."""
    whole = [message(photos)]
    rate = closed_loop(ours.access, whole, clients=4, seconds=3).per_second
    with asking(ours, photos, seconds=seconds) as (answers, _):
        flood = open_loop(ours.access, whole, rate=FLOOD * rate, seconds=seconds / 2)
    print(f"flood: {flood}\nothers: {answers.result()}", flush=True)
    return flood, answers.result()


class asking:  # reads as a phrase
    """Starts clients that ask for single photos; yields their future results, and a way to end them."""

    def __init__(self, ours: Served, photos: np.ndarray, *, seconds: float) -> None:
        self.arguments = (ours.access, [message(photo[None]) for photo in photos])
        self.seconds, self.over = seconds, threading.Event()

    def __enter__(self) -> tuple[Future[Outcome], threading.Event]:
        self.pool = ProcessPoolExecutor(1, get_context("spawn"))
        self.pool.submit(closed_loop, *self.arguments, clients=CLIENTS, seconds=0.1).result()  # it has started
        future = self.pool.submit(closed_loop, *self.arguments, clients=CLIENTS, seconds=self.seconds)
        future.add_done_callback(lambda _: self.over.set())
        return future, self.over

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()


def break_a_version(ours: Served, photos: np.ndarray) -> int:
    """Writes a version whose graph is damaged while its lineage holds, so that only the server can find out."""
    version = 3
    source = ours.repository.path(1)
    ours.repository.write(
        source / "model.onnx", version=version, labels=ours.repository.labels(1), lineage={}, golden=photos[:2]
    )
    folder = ours.repository.path(version)
    whole = (folder / "model.onnx").read_bytes()
    at = whole.rindex(CONV)
    (folder / "model.onnx").write_bytes(
        whole[:at] + CONV[:-1] + b"e" + whole[at + len(CONV) :]
    )  # a readable name of an unknown operator
    lineage = json.loads((folder / "lineage.json").read_bytes())
    lineage["files"] = {name: sha256(folder / name) for name in lineage["files"]}
    (folder / "lineage.json").write_text(json.dumps(lineage))
    return version


if __name__ == "__main__":
    main()
