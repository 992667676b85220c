"""Split of the time of requests over what it goes into, from the counters of the kernel, of Triton and of the FastAPI server.

Processor time: each part in seconds of a core. The client makes its requests in the loop here, as programs do; what that costs
alone, and what ONNX Runtime needs for the batches that were computed, is measured apart, the latter on all cores at once. Other
processes, idle cores and those that a hypervisor took fill up the whole: the cores times the clock.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
from figure import figure
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from load import sessions, web
from load.endpoint import TICKS, Served, cpu_seconds
from load.generator import Outcome, closed_loop, message
from serving.wire import connect

MACHINE = {"busy": (0, 1, 2, 5, 6), "idle": (3, 4), "stolen": (7,)}  # fields of /proc/stat
COSTS = 300  # requests of which the costs are measured apart
BARE_S = 0.4  # for each batch size
CLOCKS = ("queue", "compute_input", "compute_infer", "compute_output")  # of a request, in Triton's statistics
ALL = "success"  # of them: from the request's arrival to its answer
PHOTOS, CLOCK, WAITED = "photos", "clock", "waited"
BATCH, TRITON = "batch ", "triton "  # in front of the sizes of batches, and of Triton's clocks


@contextmanager
def spent(**counters: Callable[[], float]) -> Iterator[dict[str, float]]:
    """Context that yields a dict; at its end it holds by how much each counter grew."""
    before = {name: count() for name, count in counters.items()}
    found: dict[str, float] = {}
    yield found
    found |= {name: count() - before[name] for name, count in counters.items()}


def machine(kind: str) -> float:
    """Seconds that all cores together were `busy`, `idle` or `stolen` so far."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(int(fields[at]) for at in MACHINE[kind]) / TICKS


class Fresh(Sequence[bytes]):
    """Requests for single photos (N, S, S, 3), each made when it is asked for."""

    def __init__(self, photos: NDArray[np.uint8]) -> None:
        self.photos = photos

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, number: int) -> bytes:  # type: ignore[override]  # the clients take no slices
        return message(self.photos[number][None])


def of_ours(server: Served, photos: NDArray[np.uint8], *, clients: int, seconds: float) -> dict[str, float]:
    """Counts of a closed loop of single photos at our endpoint, in seconds and photos."""
    before = _statistics(server)
    with _counted(
        server=partial(server.cpu_seconds, stubs=False), stub=partial(server.cpu_seconds, stubs=True)
    ) as found:
        outcome = closed_loop(server.access, Fresh(photos), clients=clients, seconds=seconds)
    after = _statistics(server)
    return _with(outcome, found, {key: count - before.get(key, 0) for key, count in after.items()})


def of_fastapi(
    there: web.Processes, photos: NDArray[np.uint8], *, clients: int, seconds: float, path: str
) -> dict[str, float]:
    """The same of a FastAPI server's `path`."""
    before = there.batches()
    with _counted(server=partial(cpu_seconds, there.pids)) as found:
        bodies = [photo.tobytes() for photo in photos]
        outcome = web.closed_loop(there.ports, bodies, clients=clients, seconds=seconds, path=path)
    computed = there.batches() - before
    return _with(outcome, found, {f"{BATCH}{size}": count for size, count in computed.items()})


def tell(
    name: str,
    found: Mapping[str, float],
    bare: list[onnxruntime.InferenceSession],
    photos: NDArray[np.uint8],
    *,
    server: str,
) -> None:
    """Prints the figures: ms of a core for each photo by part, ms of the clock of a request by part, and the mean batch.

    server: part that processes other than the stubs are: "triton", or "fastapi", which computes itself.
    """
    count = found[PHOTOS]
    sizes = {int(key.removeprefix(BATCH)): n for key, n in found.items() if key.startswith(BATCH) and n}
    each = {key: 1000 * value / count for key, value in found.items()}
    runtime = sum(
        size * number * sessions.cpu_ms_per_image(bare, np.resize(photos, (size, *photos.shape[1:])), seconds=BARE_S)
        for size, number in sizes.items()
    ) / count  # fmt: skip
    ours = server == "triton"
    client = _client_ms(photos) if ours else {}
    parts = {
        **{f"client_{part}": value for part, value in client.items()},
        f"client_{'grpc' if ours else 'http'}": each["client"] - sum(client.values()),
        server: each["server"] - (0 if ours else runtime),
        **({"stub": each["stub"] - runtime} if ours else {}),
        "onnxruntime": runtime,
        "other_processes": each["busy"] - each["client"] - each["server"] - each.get("stub", 0),
        "idle": each["idle"],
        "stolen": each["stolen"],
    }
    _figures(f"{name}_cpu_ms", parts, whole=1000 * (os.cpu_count() or 1) * found[CLOCK] / count)
    if ours:
        clocks = {clock: each[TRITON + clock] for clock in CLOCKS}
        rest = {"triton": each[TRITON + ALL] - sum(clocks.values()), "grpc": each[WAITED] - each[TRITON + ALL]}
        _figures(f"{name}_clock_ms", clocks | rest, whole=each[WAITED])
    mean = sum(size * number for size, number in sizes.items()) / sum(sizes.values())
    figure(f"{name}_mean_batch", round(mean, 2), target="told", met=True, baseline=max(sizes))


def _figures(name: str, parts: Mapping[str, float], *, whole: float) -> None:
    """Prints the parts, and their sum beside the whole."""
    for part, value in parts.items():
        figure(f"{name}_{part}", round(value, 3), target="told", met=True, baseline=None)
    figure(f"{name}_sum", round(sum(parts.values()), 3), target="told", met=True, baseline=round(whole, 3))


@contextmanager
def _counted(**processes: Callable[[], float]) -> Iterator[dict[str, float]]:
    """`spent` of these processes, the clients in this one, the machine and the clock."""
    kinds = {kind: partial(machine, kind) for kind in MACHINE}
    with spent(**processes, **kinds, client=time.process_time, **{CLOCK: time.perf_counter}) as found:
        yield found


def _with(outcome: Outcome, found: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    assert not outcome.failed
    assert not outcome.rejected
    return {**found, **more, PHOTOS: len(outcome.latencies), WAITED: sum(outcome.latencies)}


def _statistics(server: Served) -> dict[str, float]:
    """Triton's counters of the model: seconds by part of a request, and batches by size."""
    with connect(server.access) as client:
        [found] = client.get_inference_statistics("products").model_stats
    clocks = {TRITON + clock: getattr(found.inference_stats, clock).ns / 1e9 for clock in (*CLOCKS, ALL)}
    sizes = {f"{BATCH}{batch.batch_size}": batch.compute_infer.count for batch in found.batch_stats}
    return {**clocks, **sizes}


def _client_ms(photos: NDArray[np.uint8]) -> dict[str, float]:
    """Milliseconds of a core for each request: tensor to bytes, protobuf's message around them, and reading the answer."""
    photo, k = photos[:1], 5
    answer = service_pb2.ModelInferResponse(
        model_name="products", model_version="1",
        outputs=[{"name": name, "datatype": kind, "shape": [1, width]}
                 for name, kind, width in (("ids", "INT64", k), ("probs", "FP32", k), ("known", "FP32", 1))],
        raw_output_contents=[bytes(8 * k), bytes(4 * k), bytes(4)],
    ).SerializeToString()  # fmt: skip
    tensor, both = _ms(photo.tobytes), _ms(lambda: message(photo))
    reading = _ms(lambda: service_pb2.ModelInferResponse.FromString(answer))
    return {"tensor": tensor, "protobuf": both - tensor, "reading": reading}


def _ms(work: Callable[[], object]) -> float:
    began = time.thread_time()
    for _ in range(COSTS):
        work()
    return 1000 * (time.thread_time() - began) / COSTS
