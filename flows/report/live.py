"""Live lines at the bottom of a terminal, one per child, below the log lines."""

from __future__ import annotations

import logging
import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn
from rich.table import Column

WIDE = 100  # columns of a terminal that has space for a bar


def show_live_lines(console: Console, lines: logging.Handler) -> None:
    """Shows fleeting lines on a console that is a terminal.

    Args:
        lines: handler that prints log lines to the console; both take turns.
    """
    log = logging.getLogger("cleanshelf-live")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers = []
    if sys.stderr.isatty() and console.is_interactive:  # rich takes FORCE_COLOR for a terminal
        handler = LiveLines(console)
        handler.lock = lines.lock
        log.addHandler(handler)


class LiveLines(logging.Handler):
    """Handler of flows.live: each record replaces the line of its child, and one without text takes it away.

    The display exists only while there are lines. The cursor stays visible, so a kill leaves the terminal as it was.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console, self.tasks = console, dict[int, TaskID]()

    def emit(self, record: logging.LogRecord) -> None:
        """Shows a record."""
        child, title, share = (vars(record)[name] for name in ("child", "title", "share"))
        try:
            if text := record.getMessage():
                self._set(child, title, text, share)
            elif child in self.tasks:
                self._take_away(child)
        except Exception:  # a terminal that is gone does not end a training
            self.handleError(record)

    def _set(self, child: int, title: str, text: str, share: float) -> None:
        if not self.tasks:
            self._start()
        if child not in self.tasks:
            self.tasks[child] = self.display.add_task(title, total=1, text=text)
        self.display.update(self.tasks[child], completed=share, text=text, refresh=True)

    def _take_away(self, child: int) -> None:
        self.display.remove_task(self.tasks.pop(child))
        self.display.refresh()
        if not self.tasks:
            self.display.stop()

    def _start(self) -> None:
        columns = wide_columns() if self.console.width >= WIDE else narrow_columns()
        self.display = Progress(
            *columns, console=self.console, transient=True, auto_refresh=False, redirect_stdout=False
        )
        self.display.start()
        self.console.show_cursor()


def wide_columns() -> tuple[ProgressColumn, ...]:
    """Title, bar and text beside each other."""
    title, text = (TextColumn(each, markup=False) for each in ("{task.description}", "{task.fields[text]}"))
    return title, BarColumn(bar_width=20), text


def narrow_columns() -> tuple[ProgressColumn, ...]:
    """Title and text in one, wrapped."""
    wrapped = Column(no_wrap=False)
    return (TextColumn("{task.description}  {task.fields[text]}", markup=False, table_column=wrapped),)
