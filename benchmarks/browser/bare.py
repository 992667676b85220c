"""Baseline of the pages: an application of FastAPI that does nothing but answer, or write one row to disk."""

from __future__ import annotations

import multiprocessing
import socket
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Response

START_S = 30.0


@contextmanager
def bare_pages(folder: Path) -> Iterator[str]:
    """Address of the application, in a process of its own; it keeps its table in `folder`."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    process = multiprocessing.get_context("forkserver").Process(target=serve, args=(folder, port), daemon=True)
    process.start()
    wait_for(port)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.join()


def serve(folder: Path, port: int) -> None:
    """Serves the application until it is killed."""
    uvicorn.run(create_app(folder), host="127.0.0.1", port=port, log_level="error")


def create_app(folder: Path) -> FastAPI:
    """`GET /?size=N`: a page of N bytes. `POST /decide`: one row, on disk before the answer."""
    app, file = FastAPI(), Path(tempfile.mkstemp(dir=folder, suffix=".sqlite")[1])
    database = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    database.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE decision (photo TEXT)")

    @app.get("/")
    def page(size: int = 100) -> Response:
        return Response(f"<!doctype html><title>bare</title><p>{'bare ' * (size // 5)}", media_type="text/html")

    @app.post("/decide")
    async def decide(body: dict[str, str]) -> dict[str, str]:
        database.execute("INSERT INTO decision VALUES (?)", (body["photo"],))
        return body

    return app


def wait_for(port: int) -> None:
    """Waits until something listens on a port of this machine."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        with socket.socket() as asked:
            if asked.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    raise TimeoutError(f"nothing listens on port {port} after {START_S:g} s")
