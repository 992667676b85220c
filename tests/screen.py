"""A command on a pseudo-terminal, and what a person sees of it: the lines on the screen, and those that scrolled off."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import signal
import struct
import termios
import time
from collections.abc import Callable, Mapping, Sequence

TOKEN = re.compile(r"\x1b\[(?P<given>[?0-9;]*)(?P<kind>[A-Za-z])|(?P<char>[^\x1b])", re.DOTALL)
HALF = re.compile(r"\x1b(\[[?0-9;]*)?$")
ROWS = 40


class Screen:
    """The few control sequences that rich uses; any other fails."""

    def __init__(self, columns: int) -> None:
        self.columns, self.lines, self.row, self.column, self.has_cursor = columns, [""], 0, 0, True
        self.half = ""  # the beginning of a control sequence

    def write(self, text: str) -> None:
        """Shows what a process wrote to the terminal, a part of it at a time."""
        text, self.half = self.half + text, ""
        if half := HALF.search(text):
            text, self.half = text[: half.start()], half[0]
        for token in TOKEN.finditer(text):
            self._character(token["char"]) if token["char"] else self._control(token["given"], token["kind"])

    def _character(self, char: str) -> None:
        if char == "\r":
            self.column = 0
            return
        if char == "\n" or self.column == self.columns:
            self.row += 1
            self.lines += [""] * (self.row + 1 - len(self.lines))
            self.column = self.column if char == "\n" else 0
        if char != "\n":
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + char + line[self.column + 1 :]
            self.column += 1

    def _control(self, given: str, kind: str) -> None:
        if kind == "A":
            self.row = max(self.row - int(given or 1), 0)
        elif (given, kind) == ("2", "K"):
            self.lines[self.row] = ""
        elif given == "?25":
            self.has_cursor = kind == "h"
        else:
            assert kind == "m", f"an unknown control sequence: {given}{kind}"

    def shown(self) -> list[str]:
        """Lines that are not blank."""
        return [line.rstrip() for line in self.lines if line.strip()]


def on_terminal(
    command: Sequence[str],
    *,
    columns: int,
    variables: Mapping[str, str],
    interrupt: Callable[[Screen], bool] = lambda screen: False,
    timeout_s: float = 120,
) -> tuple[int, Screen, list[list[str]]]:
    """Exit code of a command, its screen at the end, and the screens meanwhile.

    Args:
        interrupt: True for a screen at which Ctrl-C is pressed.
    """
    child, terminal = pty.fork()
    if not child:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
        os.execvpe(command[0], list(command), dict(variables))
    screen, seen, end, is_interrupted = Screen(columns), list[list[str]](), time.monotonic() + timeout_s, False
    decoder = codecs.getincrementaldecoder("utf-8")()
    with os.fdopen(terminal, "rb", buffering=0) as output:
        while time.monotonic() < end:
            try:
                written = output.read(1 << 16)
            except OSError:  # Linux: the other side was closed
                break
            screen.write(decoder.decode(written))
            seen.append(screen.shown())
            if not is_interrupted and interrupt(screen):
                is_interrupted = True
                os.write(terminal, b"\x03")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), screen, seen
