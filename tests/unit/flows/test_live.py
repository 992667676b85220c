"""Fleeting lines of children and of our own passes: on a terminal while they hold, never in the log."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from flows.errors import ChildFailed
from flows.live import LiveLine, counted
from flows.run.launch import run_child
from models.progress import ASKED, MARK, MB, Fleeting
from tests.screen import Screen, on_terminal

ROOT = Path(__file__).parents[3]
NAMES = ("train-1", "train-2")
# timeit stands for a training: a module that runs a statement. For this pass a second goes by at each batch.
PASS = """
import itertools
from models.progress import Progress
from models.training.command import log_progress
log_progress()
seconds = itertools.count()
progress = Progress("scoring", 800, clock=lambda: float(next(seconds)))
for _ in range(40):
    progress.add(20, waited=0.1)
progress.done()
"""
LASTING = ["scoring: 75%  20 photos/s  waits 10%  10 s left", "scoring: 800 photos in 40 s  20 photos/s  waits 10%"]
# Prints lines as a pass does; the last ones stay on the screen for a while.
LINES = """
import os, time
from models.progress import ASKED, Fleeting, print_fleeting
def show(percent):
    if os.environ[ASKED]:
        print_fleeting(Fleeting(f"scoring: {percent}%  20 photos/s  waits 10%  loss 1.234  10 s left", percent / 100))
show(8)
print("epoch 1 of 2", flush=True)
show(98)
time.sleep(PAUSE)
print("epoch 2 of 2", flush=True)
"""
FLOW = """
import logging, sys, threading
from flows.report.terminal import show_progress
from flows.run.launch import end_children, run_child

def train(name):
    run_child("timeit", ["-n", "1", "-r", "1", LINES], say=lambda line: log.info("%s: %s", name, line), title=name)

show_progress()
log = logging.getLogger("cleanshelf")
log.addHandler(logging.FileHandler(sys.argv[1]))
threads = [threading.Thread(target=train, args=(name,)) for name in NAMES]
for each in threads:
    each.start()
try:
    for each in threads:
        each.join()
except BaseException:
    end_children()
    raise
print("the result")
"""


def child(statement: str) -> tuple[str, list[str]]:
    """Module and arguments of a child that runs a statement once."""
    return "timeit", ["-n", "1", "-r", "1", statement]


@pytest.fixture
def shown() -> Iterator[list[logging.LogRecord]]:
    """Records of fleeting lines, as a terminal gets them."""
    records: list[logging.LogRecord] = []
    handler, log = logging.Handler(), logging.getLogger("cleanshelf-live")
    handler.emit = records.append
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    yield records
    log.removeHandler(handler)


def test_lasting_lines_go_to_the_log_and_fleeting_ones_to_the_terminal(shown: list[logging.LogRecord]) -> None:
    lines: list[str] = []
    run_child(*child(PASS), say=lines.append, title="fold-2")
    assert lines[:2] == LASTING
    assert not any(MARK in line for line in lines)
    assert {(record.title, record.child) for record in shown} == {("fold-2", shown[0].child)}
    texts = [record.getMessage() for record in shown]
    assert texts[0] == "scoring: 5%  20 photos/s  waits 10%  38 s left"
    assert texts[-2:] == ["", ""], "taken away at the end of the pass, and of the child"
    assert [record.share for record in shown[:-2]] == pytest.approx([share / 40 for share in range(2, 41, 2)])


def test_without_a_terminal_a_child_is_not_asked_for_fleeting_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even if our own flow was itself asked for them."""
    monkeypatch.setenv(ASKED, "1")
    lines: list[str] = []
    run_child(*child(LINES.replace("PAUSE", "0")), say=lines.append)
    assert lines[:2] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert not any(MARK in line for line in lines)


def test_the_line_of_a_child_that_fails_is_taken_away(shown: list[logging.LogRecord]) -> None:
    with pytest.raises(ChildFailed, match=r"code 3; its last lines:\nepoch 1 of 2$"):
        run_child(*child(LINES.replace("PAUSE", "os._exit(3)")), say=lambda line: None)
    assert [record.getMessage()[:12] for record in shown] == ["scoring: 8% ", "scoring: 98%", ""]
    assert shown[0].title == "timeit"


def test_only_what_is_fleeting_is_taken_out(shown: list[logging.LogRecord]) -> None:
    line = LiveLine("fold-0")
    lasting = [line.take(text) for text in ("", "epoch 1", f'{MARK}["scoring", 0.5]', f'half{MARK}["again", 0.6]')]
    assert lasting == ["", "epoch 1", None, "half"], "blank lines last"
    assert [Fleeting(record.getMessage(), record.share) for record in shown] == [("scoring", 0.5), ("again", 0.6)]


def test_a_pass_of_our_own_has_a_line_too_which_ends_with_it(
    shown: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.progress.FLEETING_S", 0.0)
    with suppress(OSError), counted("pushing", 4_000_000, unit=MB) as progress:
        progress.add(1_000_000)
        raise OSError("the remote is gone")
    first, end = shown
    assert (first.getMessage().partition("  ")[0], first.share) == ("pushing: 25%", 0.25)
    assert first.getMessage().endswith("left")
    assert "MB/s" in first.getMessage()
    assert end.getMessage() == ""


def test_a_pass_of_unknown_length_counts(shown: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.progress.FLEETING_S", 0.0)
    with counted("listing", unit="files") as progress:
        progress.add(2000)
    assert shown[0].getMessage().startswith("listing: 2,000 files  ")


def flow(
    folder: Path, columns: int, *, pause: float = 1, interrupt: bool = False, **more: str
) -> tuple[int, Screen, list[list[str]], str]:
    """Exit code, last screen, screens meanwhile, and log of a flow of two children on a terminal."""
    lines = LINES.replace("PAUSE", str(pause))
    (folder / "flow.py").write_text(FLOW.replace("LINES", repr(lines)).replace("NAMES", repr(NAMES)))
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    code, screen, seen = on_terminal(
        [sys.executable, str(folder / "flow.py"), str(folder / "log")],
        columns=columns,
        variables=plain | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color"} | more,
        interrupt=lambda screen: interrupt and are_live(screen.shown()),
    )
    return code, screen, seen, (folder / "log").read_text()


def are_live(lines: list[str]) -> bool:
    """True if both children have their last fleeting line on the screen."""
    return all(any(line.startswith(name) and "98%" in line for line in lines) for name in NAMES)


@pytest.mark.parametrize("columns", [60, 200])
def test_a_terminal_shows_a_line_for_each_child_and_the_log_has_none(tmp_path: Path, columns: int) -> None:
    code, screen, seen, log = flow(tmp_path, columns)
    assert code == 0
    assert any(map(are_live, seen)), seen[-1]
    assert "98%" not in log
    assert MARK not in log
    wanted = sorted(f"{name}: epoch {epoch} of 2" for name in NAMES for epoch in (1, 2))
    assert sorted(line for line in log.splitlines() if "epoch" in line) == wanted
    assert sorted(line[9:] for line in screen.shown() if "epoch" in line) == wanted, "untorn"
    assert not any("scoring" in line for line in screen.shown()), "the live lines are gone"
    assert screen.shown()[-1] == "the result"
    assert screen.has_cursor


def test_an_interrupted_flow_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    code, screen, seen, log = flow(tmp_path, 120, pause=60, interrupt=True)
    assert any(map(are_live, seen))
    assert code != 0
    assert screen.has_cursor
    assert not are_live(screen.shown())
    assert "98%" not in log


@pytest.mark.parametrize(("variables", "is_live"), [({"NO_COLOR": "1"}, True), ({"TERM": "dumb"}, False)])
def test_plain_terminals(tmp_path: Path, variables: dict[str, str], is_live: bool) -> None:
    code, _, seen, log = flow(tmp_path, 120, **variables)
    assert code == 0
    assert any(map(are_live, seen)) == is_live
    assert log.count("epoch 1 of 2") == 2
