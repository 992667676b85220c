"""The load generator: its counts, and the effect of a stall on all requests that are due during it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from load.generator import METHOD, Outcome, closed_loop, message, open_loop
from tritonclient.grpc import service_pb2

Answer = Callable[[service_pb2.ModelInferRequest, grpc.ServicerContext], service_pb2.ModelInferResponse]


@pytest.fixture
def endpoint() -> Iterator[Callable[[Answer], str]]:
    """Function that starts a real gRPC server with the given answers, and returns its address."""
    servers = []

    def start(answer: Answer) -> str:
        server = grpc.server(ThreadPoolExecutor(32))
        handler = grpc.unary_unary_rpc_method_handler(
            answer, service_pb2.ModelInferRequest.FromString, service_pb2.ModelInferResponse.SerializeToString
        )
        _, service, method = METHOD.split("/")
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None)


@pytest.fixture
def photo() -> bytes:
    return message(np.zeros((1, 4, 4, 3), np.uint8))


def answer_at_once(request: service_pb2.ModelInferRequest, _: grpc.ServicerContext) -> service_pb2.ModelInferResponse:
    assert list(request.inputs[0].shape) == [1, 4, 4, 3]
    return service_pb2.ModelInferResponse(model_version="7")


class Stalling:
    """Answers at once, except for one stall in which all requests wait."""

    def __init__(self, *, after: int, seconds: float) -> None:
        self.requests, self.after, self.seconds = 0, after, seconds
        self.lock = threading.Lock()

    def __call__(self, *_: object) -> service_pb2.ModelInferResponse:
        with self.lock:
            self.requests += 1
            if self.requests == self.after:
                time.sleep(self.seconds)
        return service_pb2.ModelInferResponse(model_version="1")


def test_closed_loop_counts_every_answer(endpoint: Callable[[Answer], str], photo: bytes) -> None:
    answer = Stalling(after=0, seconds=0)
    outcome = closed_loop(endpoint(answer), [photo], clients=3, seconds=0.5)
    assert outcome.sent == len(outcome.latencies) == answer.requests > 3
    assert outcome.versions == {"1": answer.requests}
    assert outcome.per_second == pytest.approx(outcome.sent / outcome.seconds)


def test_open_loop_sends_what_the_schedule_says(endpoint: Callable[[Answer], str], photo: bytes) -> None:
    outcome = open_loop(endpoint(answer_at_once), [photo], rate=200, seconds=0.5)
    assert (outcome.sent, outcome.versions) == (100, {"7": 100})


def test_only_an_open_loop_shows_a_stall(endpoint: Callable[[Answer], str], photo: bytes) -> None:
    """A stall of half a second in one second: half of the requests of an open loop wait, but only one of a closed loop."""
    opened = open_loop(endpoint(Stalling(after=30, seconds=0.5)), [photo], rate=200, seconds=1)
    closed = closed_loop(endpoint(Stalling(after=30, seconds=0.5)), [photo], clients=1, seconds=1)
    slow = [sum(latency > 0.1 for latency in each.latencies) for each in (opened, closed)]
    assert slow[0] > 40
    assert slow[1] < 10
    assert closed.percentile_ms(100) > 400


def test_rejects_are_counted_apart_from_failures(endpoint: Callable[[Answer], str], photo: bytes) -> None:
    turn = iter(range(10**6))

    def answer(_: object, context: grpc.ServicerContext) -> service_pb2.ModelInferResponse:
        match next(turn) % 3:
            case 0:
                context.abort(grpc.StatusCode.UNAVAILABLE, "[request id: <id_unknown>] Exceeds maximum queue size")
            case 1:
                context.abort(grpc.StatusCode.INTERNAL, "the stub is gone")
        return service_pb2.ModelInferResponse(model_version="1")

    outcome = closed_loop(endpoint(answer), [photo], clients=1, seconds=0.5)
    assert outcome.rejected > 0
    assert set(outcome.failed) == {"INTERNAL: the stub is gone"}
    assert abs(outcome.rejected - len(outcome.latencies)) <= 1
    assert outcome.sent == outcome.rejected + outcome.failed.total() + len(outcome.latencies)


def test_outcomes_add_up() -> None:
    total = Outcome(seconds=1.0, latencies=[0.1], rejected=1)
    total.add(Outcome(seconds=1.0, latencies=[0.3], rejected=2))
    assert (total.sent, total.per_second, total.rejected) == (5, 1.0, 3)
    assert total.percentile_ms(50) == pytest.approx(200)
