"""Requests to an endpoint over gRPC, in a closed loop or an open one.

Closed: a number of clients, each of which asks again as soon as it has its answer. That is the most a server can do, and says
little about waiting: while the server stalls, no client asks. Open: requests leave on a schedule, whatever comes back, and each
latency counts from its scheduled time, so that a stall hits all requests that were due in it (no coordinated omission).

Messages are made before the clock starts and sent as raw bytes: the generator shares its cores with the server.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from contract import LIVE
from serving.access import Access

METHOD = "/inference.GRPCInferenceService/ModelInfer"
DEADLINE_S = 30.0
CHANNELS = 4  # connections that the clients share
OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
]
REJECTED = "maximum queue size"

Ask = Callable[..., bytes]


@dataclass
class Outcome:
    """Results of the requests; latencies in seconds, of answered ones."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)  # when they were answered, by time.perf_counter
    versions: Counter[str] = field(default_factory=Counter)  # answers by model version
    rejected: int = 0  # refused at once because the queue is full
    failed: Counter[str] = field(default_factory=Counter)  # failures by the server's message

    @property
    def sent(self) -> int:
        """Number of all requests."""
        return len(self.latencies) + self.rejected + self.failed.total()

    @property
    def per_second(self) -> float:
        """Answered requests per second."""
        return len(self.latencies) / self.seconds

    def percentile_ms(self, percent: float) -> float:
        """A percentile of the latencies, in milliseconds."""
        return float(np.percentile(self.latencies, percent) * 1000)

    def answered(self, *, since: float) -> None:
        """Adds a request that has just been answered and was sent, or due, at `since`."""
        self.ends.append(time.perf_counter())
        self.latencies.append(self.ends[-1] - since)

    def add(self, other: Outcome) -> None:
        """Adds the results of later requests, or of another client at the same time (whose `seconds` are 0)."""
        self.latencies += other.latencies
        self.ends += other.ends
        self.versions += other.versions
        self.rejected += other.rejected
        self.failed += other.failed
        self.seconds += other.seconds

    def __str__(self) -> str:
        tails = "/".join(f"{self.percentile_ms(p):.1f}" for p in (50, 99, 99.9)) if self.latencies else "-"
        return (
            f"{self.sent} requests in {self.seconds:.1f} s: {self.per_second:.1f}/s answered, p50/p99/p99.9 {tails} ms, "
            f"{self.rejected} rejected, {self.failed.total()} failed {dict(self.failed) or ''}"
        )


def message(images: NDArray[np.uint8], *, model: str = "products", outputs: Sequence[str] = ("ids", "probs", "known"),
            tensor: str = "image", priority: int = LIVE) -> bytes:  # fmt: skip
    """One request for a batch (B, S, S, 3)."""
    request = service_pb2.ModelInferRequest(
        model_name=model,
        inputs=[{"name": tensor, "datatype": "UINT8", "shape": images.shape}],
        outputs=[{"name": name} for name in outputs],
        raw_input_contents=[images.tobytes()],
        parameters={"priority": {"uint64_param": priority}},
    )
    return bytes(request.SerializeToString())


def closed_loop(
    server: Access | str, messages: Sequence[bytes], *, clients: int, seconds: float, channels: int = CHANNELS,
    options: Sequence[tuple[str, Any]] = (),
) -> Outcome:  # fmt: skip
    """Results of `clients` that ask without a pause for `seconds`; `options` of gRPC in addition to OPTIONS."""
    tokens = _tokens(server)
    with _channels(server, count=min(clients, channels), options=options) as asks:

        def ask(client: int, turn: int, outcome: Outcome) -> None:
            sent = time.perf_counter()
            try:
                content = messages[turn % len(messages)]
                answer = asks[client % len(asks)](content, timeout=DEADLINE_S, metadata=tokens)
                _answered(outcome, answer, since=sent)
            except grpc.RpcError as error:
                _unanswered(outcome, error)

        return without_pause(ask, clients=clients, seconds=seconds)


def without_pause(ask: Callable[[int, int, Outcome], None], *, clients: int, seconds: float) -> Outcome:
    """Results of requests that `ask(client, turn, outcome)` makes and notes, each client in a thread of its own."""
    began = time.perf_counter()

    def client(number: int) -> Outcome:
        own = Outcome()
        for turn in itertools.count(number):
            if time.perf_counter() >= began + seconds:
                return own
            ask(number, turn, own)
        raise AssertionError("turns never end")

    outcome = Outcome()
    with ThreadPoolExecutor(clients) as threads:
        for own in threads.map(client, range(clients)):
            outcome.add(own)
    outcome.seconds = time.perf_counter() - began
    return outcome


def open_loop(
    server: Access | str, messages: Sequence[bytes], *, rate: float, seconds: float, seed: int = 0
) -> Outcome:
    """Results of requests that come at random (Poisson) at `rate` per second for `seconds`."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, max(1, round(rate * seconds)))
    due = np.cumsum(gaps)
    outcome, lock, left = Outcome(), threading.Lock(), threading.Semaphore(0)
    tokens = _tokens(server)
    with _channels(server, count=CHANNELS) as asks:
        began = time.perf_counter()

        def done(call: grpc.Future, since: float) -> None:
            with lock:
                try:
                    _answered(outcome, call.result(), since=since)
                except grpc.RpcError as error:
                    _unanswered(outcome, error)
            left.release()

        for number, moment in enumerate(began + due):
            time.sleep(max(0.0, moment - time.perf_counter()))
            ask, content = asks[number % len(asks)], messages[number % len(messages)]
            call = ask.future(content, timeout=DEADLINE_S, metadata=tokens)
            call.add_done_callback(lambda call, since=moment: done(call, since))
        for _ in due:
            left.acquire()
        outcome.seconds = time.perf_counter() - began
    return outcome


def _tokens(server: Access | str) -> list[tuple[str, str]]:
    return list(Access.of(server).headers().items())


@contextmanager
def _channels(server: Access | str, *, count: int, options: Sequence[tuple[str, Any]] = ()) -> Iterator[list[Ask]]:
    """One call for each of `count` connections; requests and answers are bytes."""
    channels = [grpc.insecure_channel(Access.of(server).address, options=[*OPTIONS, *options]) for _ in range(count)]
    try:
        for channel in channels:
            grpc.channel_ready_future(channel).result(timeout=DEADLINE_S)
        yield [channel.unary_unary(METHOD) for channel in channels]
    finally:
        for channel in channels:
            channel.close()


def _answered(outcome: Outcome, answer: bytes, *, since: float) -> None:
    outcome.answered(since=since)
    outcome.versions[service_pb2.ModelInferResponse.FromString(answer).model_version] += 1


def _unanswered(outcome: Outcome, error: grpc.RpcError) -> None:
    words = error.details() or ""
    if REJECTED in words:
        outcome.rejected += 1
    else:
        outcome.failed[f"{error.code().name}: {words[:80]}"] += 1
