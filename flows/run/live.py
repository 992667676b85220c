"""Fleeting lines of children, which a terminal shows while they hold, and which are recorded nowhere.

They have a logger of their own, that only a terminal handles (flows.report.live). Without one, as in Prefect's and Dask's
workers, in cron and in CI, children are not asked for them.
"""

from __future__ import annotations

import logging

from models.progress import ASKED, Fleeting, separate

log = logging.getLogger("cleanshelf-live")


class LiveLine:
    """The fleeting line of one child, called `title`."""

    def __init__(self, title: str) -> None:
        self.title, self.is_shown = title, bool(log.handlers)

    @property
    def variables(self) -> dict[str, str]:
        """Variables that ask a child for fleeting lines if a terminal shows them."""
        return {ASKED: "1" if self.is_shown else ""}

    def take(self, line: str) -> str | None:
        """Shows the fleeting part of a line, and returns the lasting one; None if all of it is fleeting."""
        lasting, fleeting = separate(line)
        if fleeting:
            self._show(fleeting)
        return lasting if lasting or not fleeting else None

    def end(self) -> None:
        """Takes the line away."""
        self._show(Fleeting("", 1.0))

    def _show(self, line: Fleeting) -> None:
        if self.is_shown:
            log.info(line.text, extra={"child": id(self), "title": self.title, "share": line.share})
