"""The server that people write first: FastAPI and ONNX Runtime, a process for each core; and clients that ask it.

As a module of uvicorn (`load.web:app`) it takes a photo's pixels as the body of a POST and answers in JSON. /recognise leaves out
what a product would add: decoding, checks, a queue. /queued has the guarantees of our endpoint: requests that wait are computed in
one batch, beside the event loop; a full queue rejects, a request that waited too long is not computed, and the answer names the
version.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import subprocess
import sys
import time
from asyncio import Future, Queue
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from numpy.typing import NDArray

from contract.environment import process_variables
from flows.endpoint.server import free_ports
from load.generator import Outcome, without_pause
from load.networks import SIDE
from load.sessions import open_sessions

GRAPH = "BENCHMARK_GRAPH"
START_S = 60.0
BATCH, WAITING, DEADLINE_S = 16, 64, 2.0  # of /queued: largest batch, requests that may wait, and how long
VERSION = "1"

Waiting = tuple[float, NDArray[np.uint8], Future]
sessions = open_sessions(Path(os.environ[GRAPH]), count=1) if GRAPH in os.environ else []
computed = Counter[int]()  # batches by size


@dataclass(frozen=True)
class Processes:
    """Running servers, each with a port of its own."""

    ports: Sequence[int]
    pids: Sequence[int]

    def batches(self) -> Counter[int]:
        """Number of batches that they have computed so far, by size."""
        found = Counter[int]()
        for port in self.ports:
            for size, count in json.loads(_get(port, "/computed")).items():
                found[int(size)] += count
        return found


@asynccontextmanager
async def _batcher(app: FastAPI) -> AsyncIterator[None]:
    """Context in which a task computes what waits in the queue."""
    app.state.queue = Queue[Waiting](WAITING)
    task = asyncio.create_task(_compute(app.state.queue))
    yield
    task.cancel()


app = FastAPI(lifespan=_batcher)


@app.post("/recognise")
async def recognise(request: Request) -> dict[str, list]:
    """The ranked classes of one photo."""
    image = np.frombuffer(await request.body(), np.uint8).reshape(1, SIDE, SIDE, 3)
    ids, probs = sessions[0].run(["ids", "probs"], {"image": image})
    computed[1] += 1
    return {"ids": ids[0].tolist(), "probs": probs[0].tolist()}


@app.post("/queued")
async def queued(request: Request) -> dict[str, list | str]:
    """The ranked classes of one photo, computed with others that wait."""
    image = np.frombuffer(await request.body(), np.uint8).reshape(1, SIDE, SIDE, 3)
    answer = asyncio.get_running_loop().create_future()
    try:
        request.app.state.queue.put_nowait((time.monotonic(), image, answer))
    except asyncio.QueueFull as error:
        raise HTTPException(503, "too many requests wait") from error
    ids, probs = await answer
    return {"ids": ids.tolist(), "probs": probs.tolist(), "version": VERSION}


@app.get("/computed")
async def batches() -> dict[int, int]:
    """Number of batches by size."""
    return computed


async def _compute(queue: Queue[Waiting]) -> None:
    """Answers what waits, batch by batch; never a request that is past its deadline."""
    while True:
        some = [await queue.get()]
        while len(some) < BATCH and not queue.empty():
            some.append(queue.get_nowait())
        due = list[Waiting]()
        for each in some:
            if time.monotonic() - each[0] < DEADLINE_S:
                due.append(each)
            else:
                each[2].set_exception(HTTPException(504, "the request waited too long"))
        if not due:
            continue
        images = np.concatenate([image for _, image, _ in due])
        computed[len(due)] += 1
        ids, probs = await asyncio.to_thread(sessions[0].run, ["ids", "probs"], {"image": images})
        for (_, _, answer), *found in zip(due, ids, probs, strict=True):
            if not answer.done():
                answer.set_result(found)


@contextmanager
def serving(graph: Path, *, workers: int) -> Iterator[Processes]:
    """Runs `workers` processes, each on a port of its own.

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
        yield Processes(ports, [child.pid for child in children])
    finally:
        for child in children:
            child.terminate()
            child.wait()


def closed_loop(
    ports: Sequence[int], bodies: Sequence[bytes], *, clients: int, seconds: float, path: str = "/recognise"
) -> Outcome:
    """Results as of load.generator.closed_loop, over HTTP with a connection for each client, spread over the processes."""
    connections = [http.client.HTTPConnection("127.0.0.1", ports[number % len(ports)]) for number in range(clients)]

    def ask(client: int, turn: int, outcome: Outcome) -> None:
        sent, connection = time.perf_counter(), connections[client]
        connection.request("POST", path, bodies[turn % len(bodies)])
        answer = connection.getresponse()
        answer.read()
        if answer.status == http.client.OK:
            outcome.answered(since=sent)
        else:
            outcome.failed[str(answer.status)] += 1

    return without_pause(ask, clients=clients, seconds=seconds)


def _wait(port: int) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            _get(port, "/openapi.json")
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _get(port: int, path: str) -> bytes:
    with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        connection.request("GET", path)
        return connection.getresponse().read()
