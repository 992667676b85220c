"""Kills of the server while two people decide about the same photos by the JSON API, and send again what was not answered."""

from __future__ import annotations

import json
import multiprocessing
import random
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from browser.bare import wait_for
from browser.told import at_most, told
from flows.review.decisions import NAME
from flows.web import serve_pages
from flows.workspace import Workspace
from serving.server.command import Listening

PEOPLE = ("Ana", "Ben")
DECIDING_S = 0.5  # a kill comes within this time after the server answers
PAUSE_S = 0.005  # between decisions of one person
REFUSED = 409  # the other person was faster


class Script(threading.Thread):
    """One person, who decides about photos one after the other until told to stop; `answered` are those that were taken."""

    def __init__(self, who: str, port: int, version: str, photos: Sequence[str]) -> None:
        super().__init__()
        self.port, self.version, self.photos = port, version, photos
        self.headers = {"cookie": f"cleanshelf_name={who}", "content-type": "application/json"}
        self.answered: list[str] = []
        self.must_stop = threading.Event()

    def run(self) -> None:
        """Decides; each photo until there is an answer."""
        for photo in self.photos:
            if self.must_stop.is_set():
                return
            while (status := self._decide(photo)) is None:
                time.sleep(0.01)
            if status != REFUSED:
                assert status == 200, status
                self.answered.append(photo)
            time.sleep(PAUSE_S)

    def _decide(self, photo: str) -> int | None:
        body = {"version": self.version, "photos": [photo], "kind": "keep", "seen": 0}
        try:
            with closing(HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
                connection.request("POST", "/api/review/decide", json.dumps(body), self.headers)
                answer = connection.getresponse()
                answer.read()
        except (OSError, HTTPException):
            return None
        return answer.status


def serve(root: Path, port: int) -> None:
    """Serves the pages of a workspace until it is killed."""
    serve_pages(Workspace.find(root), Listening(), port=port, ready=lambda address: None)


def measure(root: Path, version: str, photos: Sequence[str], kills: int) -> None:
    """Prints how many decisions were lost or doubled; nothing in the workspace is decided before."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    draw, scripts = random.Random(5), [Script(who, port, version, photos) for who in PEOPLE]
    for number in range(kills + 1):
        server = multiprocessing.get_context("forkserver").Process(target=serve, args=(root, port), daemon=True)
        server.start()
        wait_for(port)
        if number == 0:
            for script in scripts:
                script.start()
        _wait_for_an_answer(scripts)
        if number < kills:
            time.sleep(DECIDING_S * draw.random())
            server.kill()
            server.join()
    for script in scripts:
        script.must_stop.set()
        script.join()
    server.terminate()
    server.join()
    answered = Counter((photo, who) for who, script in zip(PEOPLE, scripts, strict=True) for photo in script.answered)
    told(f"decisions that were confirmed during {kills} kills", answered.total())
    at_most(f"decisions lost or doubled by {kills} kills", wrong(root, answered), 0)


def wrong(root: Path, answered: Counter[tuple[str, str]]) -> int:
    """Number of decisions that were confirmed and are not there, are there without being confirmed, or twice for a photo."""
    with closing(sqlite3.connect(root / "state" / NAME)) as database:
        written = Counter(database.execute("SELECT photo, who FROM decision").fetchall())
    twice = Counter(photo for photo, _ in written.elements())
    return (answered - written).total() + (written - answered).total() + sum(number > 1 for number in twice.values())


def _wait_for_an_answer(scripts: Sequence[Script]) -> None:
    """Waits until a script has an answer of the present server."""
    before = sum(len(script.answered) for script in scripts)
    while sum(len(script.answered) for script in scripts) == before:
        assert all(script.is_alive() for script in scripts), "the photos were too few, or a script failed"
        time.sleep(0.002)
