"""The server that people write first: FastAPI and ONNX Runtime, a process for each core; and clients that ask it.

As a module of uvicorn (`load.web:app`) it takes a photo's pixels as the body of POST /recognise and answers in JSON. It leaves out
what a product would add: decoding, checks, a queue.
"""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from fastapi import FastAPI, Request

from contract.environment import process_variables
from flows.endpoint.server import free_ports
from load.generator import Outcome, without_pause
from load.networks import SIDE
from load.sessions import open_sessions

GRAPH = "BENCHMARK_GRAPH"
START_S = 60.0

app = FastAPI()
sessions = open_sessions(Path(os.environ[GRAPH]), count=1) if GRAPH in os.environ else []


@app.post("/recognise")
async def recognise(request: Request) -> dict[str, list]:
    """The ranked classes of one photo."""
    image = np.frombuffer(await request.body(), np.uint8).reshape(1, SIDE, SIDE, 3)
    ids, probs = sessions[0].run(["ids", "probs"], {"image": image})
    return {"ids": ids[0].tolist(), "probs": probs[0].tolist()}


@contextmanager
def serving(graph: Path, *, workers: int) -> Iterator[list[int]]:
    """Runs `workers` processes, each on a port of its own, and yields the ports.

    Not uvicorn's own workers: their shared socket waits 40 ms with the second packet of each answer (Nagle), which no proxy in
    front of single processes would see.
    """
    ports = free_ports(workers)
    command = [sys.executable, "-m", "uvicorn", "load.web:app", "--log-level", "error", "--no-access-log", "--port"]
    paths = os.pathsep.join(path for path in sys.path if path)
    variables = process_variables(PYTHONPATH=paths) | {GRAPH: str(graph)}
    children = [subprocess.Popen([*command, str(port)], env=variables) for port in ports]
    try:
        for port in ports:
            _wait(port)
        yield ports
    finally:
        for child in children:
            child.terminate()
            child.wait()


def closed_loop(ports: Sequence[int], bodies: Sequence[bytes], *, clients: int, seconds: float) -> Outcome:
    """Results as of load.generator.closed_loop, over HTTP with a connection for each client, spread over the processes."""
    connections = [http.client.HTTPConnection("127.0.0.1", ports[number % len(ports)]) for number in range(clients)]

    def ask(client: int, turn: int, outcome: Outcome) -> None:
        sent, connection = time.perf_counter(), connections[client]
        connection.request("POST", "/recognise", bodies[turn % len(bodies)])
        answer = connection.getresponse()
        answer.read()
        if answer.status == http.client.OK:
            outcome.latencies.append(time.perf_counter() - sent)
        else:
            outcome.failed[str(answer.status)] += 1

    return without_pause(ask, clients=clients, seconds=seconds)


def _wait(port: int) -> None:
    deadline = time.monotonic() + START_S
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        try:
            connection.request("GET", "/openapi.json")
            connection.getresponse().read()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        finally:
            connection.close()
