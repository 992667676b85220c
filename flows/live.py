"""Fleeting lines of children and of our own passes, which a terminal shows while they hold; the record of a run keeps some.

They have a logger of their own, that a terminal (flows.report.live) and the record (flows.run.record) handle. Without
either, as in Dask's workers, children are not asked for them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from models.progress import ASKED, Fleeting, Progress, separate

log = logging.getLogger("cleanshelf-live")
steps = logging.getLogger("cleanshelf")


class LiveLine:
    """The fleeting line of one child, called `title`, or of one pass."""

    def __init__(self, title: str) -> None:
        self.title, self.is_shown = title, bool(log.handlers)

    @property
    def variables(self) -> dict[str, str]:
        """Variables that ask a child for fleeting lines if anything handles them."""
        return {ASKED: "1" if self.is_shown else ""}

    def take(self, line: str) -> str | None:
        """Shows the fleeting part of a line, and returns the lasting one; None if all of it is fleeting."""
        lasting, fleeting = separate(line)
        if fleeting:
            self.show(fleeting)
        return lasting if lasting or not fleeting else None

    def end(self) -> None:
        """Takes the line away."""
        self.show(Fleeting("", 1.0))

    def show(self, line: Fleeting) -> None:
        """Shows the line instead of the one before; none if its text is ""."""
        if self.is_shown:
            log.info(line.text, extra={"child": id(self), "title": self.title, "share": line.share})


@contextmanager
def counted(what: str, total: int | None = None, *, unit: str = "photos") -> Iterator[Progress]:
    """Progress of a pass in this process, to be told of each part; its lines end with the block, also with an error.

    what, total, unit: as for Progress.
    """
    progress = Progress(what, total, unit=unit, say=steps.info, show=LiveLine("").show)
    try:
        yield progress
    finally:
        progress.done()
