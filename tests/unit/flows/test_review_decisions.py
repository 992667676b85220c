"""Decisions of people on disk: two people at once, undo, saving, and kills (flows.review.decisions)."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from flows.errors import Decided
from flows.review.decisions import KEEP, NAME, RELABEL, SKIP, TAKE, Decision, Decisions
from tests.decider import THREADS

ROOT = Path(__file__).resolve().parents[3]
VERSION, KILLS = "a" * 32, 20


def decision(photo: str, who: str = "Ana", kind: str = KEEP, label: str = "tea") -> Decision:
    return Decision(photo, kind, label, who, VERSION)


@pytest.fixture
def decisions(tmp_path: Path) -> Decisions:
    return Decisions(tmp_path)


def test_two_people_do_not_overwrite_each_other(decisions: Decisions) -> None:
    seen = decisions.add([decision("1", "Ana")])
    decisions.add([decision("2", "Ana")], seen=seen)
    with pytest.raises(Decided, match="Ana has decided about photo 2 in the meantime"):
        decisions.add([decision("1", "Ben", TAKE), decision("2", "Ben", TAKE)], seen=seen)
    assert [each.who for each in decisions.pending().values()] == ["Ana", "Ana"]
    decisions.add([decision("2", "Ben", TAKE)], seen=seen + 1)  # Ben has seen it now
    assert decisions.pending()["2"].who == "Ben"


def test_what_another_person_has_saved_is_not_overwritten_either(decisions: Decisions) -> None:
    upto = decisions.add([decision("1", "Ana", RELABEL, "milk")], seen=0)
    decisions.mark_saved("b" * 32, upto=upto)
    with pytest.raises(Decided, match="in the meantime: another label, 'milk'; look again"):
        decisions.add([decision("1", "Ben")], seen=0)
    decisions.add([decision("1", "Ben")], seen=upto)


def test_a_photo_that_another_person_skipped_can_be_decided(decisions: Decisions) -> None:
    decisions.add([decision("1", "Ana", SKIP)], seen=0)
    decisions.add([decision("1", "Ben")], seen=0)
    assert decisions.pending()["1"].who == "Ben"


def test_a_later_decision_of_the_same_person_holds(decisions: Decisions) -> None:
    decisions.add([decision("1")], seen=0)
    decisions.add([decision("1", kind=RELABEL, label="milk")], seen=0)
    assert decisions.pending()["1"].label == "milk"
    assert [each["label"] for each in decisions.of("1")] == ["milk", "tea"]
    decisions.add([decision("1", kind=SKIP)], seen=0)
    assert decisions.num_unsaved() == 0


def test_a_request_that_is_repeated_writes_nothing_again(decisions: Decisions) -> None:
    """Its answer was lost; one undo takes it back, as if it had been sent once."""
    sent = [decision("1"), decision("2")]
    first = decisions.add(sent, seen=0)
    assert decisions.add(sent, seen=0) == first
    assert [each.photo for each in decisions.undo("Ana")] == ["1", "2"]
    assert decisions.pending() == {}
    assert decisions.add(sent, seen=0) > first


def test_undo_takes_back_the_last_batch_of_one_person(decisions: Decisions) -> None:
    decisions.add([decision("1"), decision("2")])
    decisions.add([decision("3", "Ben")])
    assert [each.photo for each in decisions.undo("Ana")] == ["1", "2"]
    assert list(decisions.pending()) == ["3"]
    assert decisions.undo("Ana") == []


def test_what_is_saved_is_not_pending_and_cannot_be_undone(decisions: Decisions) -> None:
    upto = decisions.add([decision("1"), decision("2", kind=SKIP), decision("3")])
    decisions.add([decision("4")])
    decisions.mark_saved("b" * 32, upto=upto, left_out=["3"])
    assert (list(decisions.pending()), decisions.num_unsaved()) == (["2", "3", "4"], 2), "2 was skipped"
    assert [each.photo for each in decisions.undo("Ana")] == ["4"]
    assert decisions.of("1")[0]["saved"] == "b" * 32


def test_forgotten_photos_leave_no_bytes(decisions: Decisions, tmp_path: Path) -> None:
    decisions.add([decision("1234567890abcdef", label="a secret"), decision("2")])
    decisions.forget(["1234567890abcdef"])
    assert list(decisions.pending()) == ["2"]
    assert all(b"1234567890abcdef" not in path.read_bytes() for path in tmp_path.glob(f"{NAME}*"))


def test_threads_and_servers_at_once_write_each_decision_once(tmp_path: Path) -> None:
    shared, other = Decisions(tmp_path), Decisions(tmp_path)

    def write(decisions: Decisions, who: str) -> None:
        for number in range(25):
            decisions.add([decision(f"{who}-{number}", who)], seen=0)

    threads = [
        threading.Thread(target=write, args=(each, f"{i}")) for i, each in enumerate([shared, shared, other, other])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(shared.pending()) == shared.state()[1] == 100


@pytest.mark.faults
def test_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    """Two processes decide in two threads each until both are killed, ten times; what was confirmed is there once."""
    draw, confirmed = random.Random(5), Counter[str]()
    for attempt in range(KILLS // 2):
        command = [sys.executable, "-m", "tests.decider", str(tmp_path)]
        pair = [
            subprocess.Popen([*command, str(2 * attempt + i)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
            for i in (0, 1)
        ]
        for process in pair:
            assert process.stdout is not None
            confirmed.update([process.stdout.readline().strip()])
        threading.Event().wait(draw.random() / 20)
        for process in pair:
            process.send_signal(signal.SIGKILL)
            confirmed.update(process.communicate()[0].split())
    written = Decisions(tmp_path)
    pending = written.pending()
    assert len(confirmed) >= KILLS
    assert set(confirmed.values()) == {1}
    assert confirmed.keys() <= pending.keys()
    assert written.state()[1] == len(pending) <= len(confirmed) + KILLS * THREADS
