"""Progress of long passes over photos: how far, how fast, how much of the time the device waits for input, how long still.

Two kinds of lines. Lasting ones are logged: the first after half a minute, then rarer and rarer, at most one in ten minutes.
Fleeting ones replace each other on a flow's terminal every two seconds. A flow that can show them asks its children for
them (ASKED), and tells them from other lines by MARK; every other reader of stdout sees lasting lines only. A pass in the
flow's own process gives its lines to functions of the flow (flows.live).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import NamedTuple, TypeVar

log = logging.getLogger(__name__)

ASKED = "CLEANSHELF_FLEETING"  # variable of a child whose flow shows fleeting lines; "" or unset: it shows none
MARK = "\x1e"  # starts a JSON text within other text (RFC 7464)
WINDOW_S = 30.0  # rates are those of the last half minute
FLEETING_S = 2.0
FIRST_S = 30.0  # until the first lasting line
BETWEEN_S = (60.0, 600.0)  # least and largest time between lasting lines, and meanwhile a tenth of the time so far
STEP_S = 0.1  # least time between two points in memory, of the many that short parts would leave
MB = "MB"  # unit of a pass over bytes

Batch = TypeVar("Batch", bound=Sized)


class Point(NamedTuple):
    """Time, and until then: photos done, and seconds for which the device waited for input."""

    time: float
    photos: int
    waited: float


class Fleeting(NamedTuple):
    """A line that holds until the next one; `text` is "" once the pass has ended, `share` in [0, 1] is done."""

    text: str
    share: float


class Progress:
    """Progress of one pass over `total` photos. Workers other than the first print nothing.

    Set `note` at any time to a few words for the next lines, such as "epoch 3 of 24".

    Args:
        what: first words of each line, such as "training" or "scoring".
        total: photos of the whole pass; of a training, those of all its remaining epochs; None if unknown.
        unit: of what is counted; with MB, bytes are counted and megabytes shown.
        clock: seconds; for tests.
        say: gets lasting lines.
        show: gets fleeting lines; by default they are printed if a flow asked for them.
    """

    def __init__(
        self,
        what: str,
        total: int | None,
        *,
        unit: str = "photos",
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = log.info,
        show: Callable[[Fleeting], None] | None = None,
    ) -> None:
        self.what, self.total, self.unit, self.clock = what, total, unit, clock
        self.say, self.show = say, show or print_fleeting
        self.note, self.is_first = "", _is_first()
        self.is_watched = show is not None or bool(os.environ.get(ASKED))
        start = Point(clock(), 0, 0.0)
        self.start, self.last, self.window = start, start, deque([start])
        self.next_fleeting, self.next_lasting = start.time + FLEETING_S, start.time + FIRST_S
        self.has_lasting = self.has_fleeting = False

    def add(self, count: int, *, waited: float = 0.0, loss: Callable[[], float] | None = None) -> None:
        """Counts a batch, and prints what is due.

        Args:
            waited: seconds for which the device waited for this batch.
            loss: called only if a line is due, as it may wait for the device.
        """
        if not self.is_first:
            return
        now = self.clock()
        self.last = Point(now, self.last.photos + count, self.last.waited + waited)
        if len(self.window) > 2 and now - self.window[-2].time < STEP_S:
            self.window[-1] = self.last
        else:
            self.window.append(self.last)
        while len(self.window) > 2 and self.window[1].time <= now - WINDOW_S:
            self.window.popleft()
        is_fleeting_due, is_lasting_due = self.is_watched and now >= self.next_fleeting, now >= self.next_lasting
        if not is_fleeting_due and not is_lasting_due:
            return
        line = self._line(loss() if loss else None)
        if is_fleeting_due:
            self.next_fleeting, self.has_fleeting = now + FLEETING_S, True
            self.show(Fleeting(line, self._share()))
        if is_lasting_due:
            least, largest = BETWEEN_S
            self.next_lasting = now + min(max((now - self.start.time) / 10, least), largest)
            self.has_lasting = True
            self.say(line)

    def done(self) -> None:
        """Takes the fleeting line away, and sums up a pass that took long enough for a lasting one."""
        if self.has_fleeting:
            self.show(Fleeting("", 1.0))
        if self.has_lasting:
            taken = duration(self.last.time - self.start.time)
            counted = f"{self.what}: {self._counted()} in {taken}"
            self.say("  ".join([counted, *_speed(self.start, self.last, self.unit)]))

    def _counted(self) -> str:
        return f"{self.last.photos / _scale(self.unit):,.0f} {self.unit}"

    def _share(self) -> float:
        return min(self.last.photos / self.total, 1.0) if self.total else 1.0

    def _line(self, loss: float | None) -> str:
        """One line, of the last half minute; the loss is left out if it is None."""
        first, last = self.window[0], self.last
        far = self._counted() if self.total is None else f"{self._share():.0%}"
        parts = [f"{self.what}: {far}", self.note, *_speed(first, last, self.unit)]
        if loss is not None:
            parts.append(f"loss {loss:.3f}")
        if self.total and self.total > last.photos > first.photos:
            left = (self.total - last.photos) / (last.photos - first.photos) * (last.time - first.time)
            parts.append(f"{duration(left)} left")
        return "  ".join(filter(None, parts))


def _speed(first: Point, last: Point, unit: str) -> list[str]:
    """Photos per second between two points, and the share of that time for which the device waited, if it was measured."""
    seconds = last.time - first.time
    if seconds <= 0:
        return []
    waited = min((last.waited - first.waited) / seconds, 1.0)
    per_s = (last.photos - first.photos) / seconds / _scale(unit)
    return [f"{per_s:,.{0 if per_s >= 10 else 1}f} {unit}/s", *([f"waits {waited:.0%}"] if last.waited else [])]


def _scale(unit: str) -> float:
    return 1e6 if unit == MB else 1.0


def _is_first() -> bool:
    """True for the first worker of a training, and without workers. Flows need no torch for their own passes."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


def with_progress(
    batches: Iterable[Batch], what: str, total: int, *, clock: Callable[[], float] = time.monotonic
) -> Iterator[Batch]:
    """The batches of a pass, with its progress; the device waits while the next batch is made.

    Args:
        what, clock: as for Progress.
        total: photos of this worker's part; the rate is that of one worker, too.
    """
    progress, remaining = Progress(what, total, clock=clock), iter(batches)
    while True:
        started = clock()
        try:
            batch = next(remaining)
        except StopIteration:
            break
        waited = clock() - started
        yield batch
        progress.add(len(batch), waited=waited)
    progress.done()


def duration(seconds: float) -> str:
    """Time for people: "40 s", "12 min", "2 h 10 min"."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def print_fleeting(line: Fleeting) -> None:
    """Prints a line for the flow that asked for it."""
    sys.stdout.write(f"{MARK}{json.dumps(line)}\n")  # one write: log lines and other workers share the pipe
    sys.stdout.flush()


def separate(line: str) -> tuple[str, Fleeting | None]:
    """The lasting part of a line that a child printed, and the fleeting one; None if there is none."""
    lasting, mark, fleeting = line.partition(MARK)
    if not mark:
        return lasting, None
    try:
        return lasting, Fleeting(*json.loads(fleeting))
    except (ValueError, TypeError):  # another process of the child wrote into it
        return lasting, None
