"""Record of a run, runs/RUN/events.jsonl: one JSON line per event, from which a page shows a run under way or a killed one.

Lines are written and not fsynced: a kill loses none, a power cut may lose the last. A run never fails because of its record.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path

from flows.errors import GateRefused
from flows.live import log as live_log
from serving.server.process import birth

RECORD = "events.jsonl"
LONGEST = 2000  # characters of a text
LEAST_S, MOST_S = 3.0, 30.0  # between two lines of progress of one child, and meanwhile a hundredth of its time so far

_place: ContextVar[tuple[Path, str] | None] = ContextVar("place", default=None)  # folder of the run, and step


def note(folder: Path, event: str, **facts: object) -> None:
    """Appends an event to the record of the run in `folder`."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    facts = {name: fact[:LONGEST] if isinstance(fact, str) else fact for name, fact in facts.items()}
    with suppress(OSError), (folder / RECORD).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"at": at, "event": event} | facts) + "\n")


def note_in_step(event: str, **facts: object) -> None:
    """Appends an event of the step that this thread is in; nothing outside a step."""
    if place := _place.get():
        folder, step = place
        note(folder, event, step=step, **facts)


@contextmanager
def in_step(folder: Path, step: str) -> Iterator[None]:
    """Records the beginning and the end of a step."""
    token = _place.set((folder, step))
    note(folder, "started", step=step)
    try:
        yield
    except BaseException as error:
        note(folder, "failed", step=step, text=str(error) or type(error).__name__)
        raise
    else:
        note(folder, "finished", step=step)
    finally:
        _place.reset(token)


@contextmanager
def recorded(folder: Path, verb: str) -> Iterator[None]:
    """Records the process and the end of a run, and its log lines and the progress of its children meanwhile.

    Children on other machines leave log lines only.
    """
    pid = os.getpid()
    note(folder, "begun", verb=verb, pid=pid, born=birth(pid), machine=platform.node())
    recorder, logs = Recorder(folder), (logging.getLogger("cleanshelf"), live_log)
    live_log.setLevel(logging.INFO)
    live_log.propagate = False
    for log in logs:
        log.addHandler(recorder)
    try:
        yield
    except BaseException as error:
        note(folder, "ended", outcome=_outcome(error), text=str(error) or type(error).__name__)
        raise
    else:
        note(folder, "ended", outcome="finished", text="")
    finally:
        for log in logs:
            log.removeHandler(recorder)


def _outcome(error: BaseException) -> str:
    if isinstance(error, GateRefused):
        return "refused"
    return "stopped" if isinstance(error, KeyboardInterrupt) else "failed"


class Recorder(logging.Handler):
    """Handler that appends log lines, and fleeting lines of children at a bearable rate, to the record of a run."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self._times = folder, dict[int, tuple[float, float]]()  # of each child: first line, next line

    def emit(self, record: logging.LogRecord) -> None:
        """Appends a record."""
        text, facts = record.getMessage(), vars(record)
        step = (_place.get() or (None, ""))[1]
        if "child" not in facts:
            note(self.folder, "line", step=step, text=text)
        elif not text:
            self._times.pop(facts["child"], None)
        elif self._is_due(facts["child"]):
            note(self.folder, "progress", step=step, title=facts["title"], text=text, share=round(facts["share"], 4))

    def _is_due(self, child: int) -> bool:
        now = time.monotonic()
        first, due = self._times.get(child, (now, now))
        if now < due:
            return False
        self._times[child] = first, now + min(max((now - first) / 100, LEAST_S), MOST_S)
        return True
