"""Progress lines are due at the right times, and say what a pretend clock makes of the counts."""

from __future__ import annotations

import itertools
import logging
import re
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from models.networks.inputs import Features
from models.networks.network import Network, Normalisation
from models.networks.predict import answers, embeddings, score
from models.progress import ASKED, MARK, Fleeting, Progress, duration, separate, with_progress
from models.recipe.config import Member
from models.training.classifiers import class_means, hits, retrain_rows


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(caplog: pytest.LogCaptureFixture) -> Clock:
    caplog.set_level(logging.INFO, logger="models.progress")
    return Clock()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow that shows fleeting lines."""
    monkeypatch.setenv(ASKED, "1")


def steps(progress: Progress, clock: Clock, count: int, *, seconds: float = 1.0, photos: int = 10) -> None:
    """Passes through batches at a steady rate."""
    for _ in range(count):
        clock.now += seconds
        progress.add(photos)


def fleeting_lines(text: str) -> list[Fleeting]:
    """Fleeting lines in what was printed; there is nothing else."""
    found = [separate(line) for line in text.split("\n") if line]
    assert [lasting for lasting, _ in found] == [""] * len(found)
    return [line for _, line in found if line is not None]


def test_a_short_pass_says_nothing(
    clock: Clock, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture
) -> None:
    progress = Progress("scoring", 290, clock=clock)
    steps(progress, clock, 29)
    progress.done()
    assert caplog.messages == []
    assert capsys.readouterr() == ("", ""), "nor is a fleeting line printed for which no flow asked"


def test_the_first_line_comes_after_half_a_minute(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    progress = Progress("training", 100_000, clock=clock)
    progress.note = "epoch 3 of 24"
    for _ in range(30):
        clock.now += 1
        progress.add(100, waited=0.25, loss=lambda: 1.23456)
    assert caplog.messages == ["training: 3%  epoch 3 of 24  100 photos/s  waits 25%  loss 1.235  16 min left"]


def test_a_night_is_about_a_hundred_lines_and_every_line_comes_within_ten_minutes(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    progress, said = Progress("training", 12 * 3600 * 10, clock=clock), [1000.0]
    for _ in range(12 * 3600):
        clock.now += 1
        progress.add(10)
        if len(caplog.records) >= len(said):
            said.append(clock.now)
    waits = [after - before for before, after in itertools.pairwise(said)]
    assert 60 < len(waits) < 120
    assert (waits[:2], max(waits)) == ([30, 60], 600)
    assert all(later >= earlier for earlier, later in itertools.pairwise(waits)), "rarer and rarer"


def test_rates_are_those_of_the_last_half_minute(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """A slow start is forgotten, and a changed rate shows at once in the time left."""
    progress = Progress("scoring", 10_000, clock=clock)
    steps(progress, clock, 29, photos=1)
    steps(progress, clock, 61, photos=100)
    assert caplog.messages[-1] == "scoring: 61%  100 photos/s  39 s left"


def test_slow_passes_have_a_rate(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Batches that take longer than the window."""
    steps(Progress("scoring", 80, clock=clock), clock, 2, seconds=100, photos=8)
    assert caplog.messages[-1] == "scoring: 20%  0.1 photos/s  13 min left"


def test_the_loss_is_asked_only_when_a_line_is_due(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """It may wait for the device."""
    asked: list[float] = []

    def loss() -> float:
        asked.append(clock.now)
        return 0.5

    progress = Progress("training", 10_000, clock=clock)
    for _ in range(100):
        clock.now += 1
        progress.add(10, loss=loss)
    assert asked == [1030.0, 1090.0]
    assert len(caplog.messages) == 2


@pytest.mark.usefixtures("asked")
def test_a_fleeting_line_comes_every_two_seconds_and_is_taken_away(
    clock: Clock, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture
) -> None:
    progress = Progress("scoring", 200, clock=clock)
    steps(progress, clock, 10)
    assert [line.share for line in fleeting_lines(capsys.readouterr().out)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    steps(progress, clock, 2)
    progress.done()
    last, end = fleeting_lines(capsys.readouterr().out)
    assert last.text == "scoring: 60%  10 photos/s  8 s left"
    assert end == Fleeting("", 1.0)
    assert caplog.messages == [], "none of them is logged"


@pytest.mark.usefixtures("asked")
def test_one_loss_serves_both_lines(clock: Clock, capsys: pytest.CaptureFixture) -> None:
    asked: list[float] = []
    progress = Progress("training", 100, clock=clock)
    clock.now += 40
    progress.add(10, loss=lambda: asked.append(clock.now) or 2.0)
    assert asked == [1040.0]
    assert "loss 2.000" in capsys.readouterr().out


def test_a_long_pass_is_summed_up(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    progress = Progress("scoring", 200_000, clock=clock)
    for _ in range(200):
        clock.now += 2
        progress.add(1000, waited=0.1)
    progress.done()
    assert caplog.messages[-1] == "scoring: 200,000 photos in 7 min  500 photos/s  waits 5%"


def test_more_photos_than_announced_are_no_more_than_all(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    steps(Progress("scoring", 100, clock=clock), clock, 30)
    steps(Progress("nothing", 0, clock=clock), clock, 1, seconds=40, photos=0)
    assert caplog.messages == ["scoring: 100%  10 photos/s", "nothing: 100%  0.0 photos/s"]


def test_only_the_first_worker_speaks(
    clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # as torchrun does
    monkeypatch.setenv("RANK", "1")
    progress = Progress("scoring", 1000, clock=clock)
    steps(progress, clock, 100)
    progress.done()
    assert caplog.messages == []


def test_batches_pass_through_and_the_time_in_which_they_are_made_is_waiting(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def made() -> Iterator[list[int]]:
        for _ in range(20):
            clock.now += 1
            yield [1, 2]

    passed = []
    for batch in with_progress(made(), "scoring", 40, clock=clock):
        clock.now += 3
        passed.append(batch)
    assert passed == [[1, 2]] * 20
    assert caplog.messages == [
        "scoring: 40%  0.5 photos/s  waits 25%  48 s left",
        "scoring: 40 photos in 1 min  0.5 photos/s  waits 25%",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (40, "40 s"), (59.4, "59 s"), (59.6, "1 min"), (754, "13 min"), (3599, "1 h 0 min"),
     (7800, "2 h 10 min"), (180_000, "50 h 0 min")],
)  # fmt: skip
def test_time_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_lines_are_separated_whatever_stands_before_and_after_the_mark() -> None:
    assert separate("epoch 1 of 2") == ("epoch 1 of 2", None)
    assert separate(f'{MARK}["scoring: 5%", 0.05]') == ("", Fleeting("scoring: 5%", 0.05))
    assert separate(f'half a line{MARK}["scoring: 5%", 0.05]') == ("half a line", Fleeting("scoring: 5%", 0.05))
    for broken in ('["scor', "", "7", '["a"]', "[1, 2, 3]"):
        assert separate(f"{MARK}{broken}") == ("", None)


def test_a_flow_reads_lines_without_torch() -> None:
    """`cleanshelf` imports this module for every verb that starts a child."""
    code = "import sys, models.progress; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch("False\n", done.stdout)


def test_passes_over_photos_say_how_far_they_are(
    clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.progress.FIRST_S", 0.0)
    normalisation, member = Normalisation((0.5,) * 3, (0.3,) * 3), Member(backbone="none", size=32, seed=0)
    network = Network(nn.Identity(), width=6, num_classes=4, normalisation=normalisation, member=member)
    inputs, target, ids = Features(torch.randn(2, 40, 6), network.head), np.arange(40) % 4, np.array(["photo"] * 40)
    score(network, inputs, ids=ids, target=target)
    answers(network, inputs, target=target)
    found = embeddings(network, inputs)
    hits(class_means(found, target, num_classes=4)[0], None, found, target)
    retrain_rows(found, target, num_classes=4, epochs=2, lr=0.01, seed=0)
    begun = [message for message in caplog.messages if "100%" in message or "epoch" in message]
    names = ["scoring", "answers for the loss", "embeddings", "class means", "predicted classes", "classifier"]
    assert [message.partition(":")[0] for message in begun] == names
    assert begun[-1].startswith("classifier: 50%  epoch 1 of 2 ")
    assert "  loss " in begun[-1]
