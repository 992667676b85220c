"""A worker that dies or falls silent in a scoring pass ends the others; one that is only slow does not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from serving.server.process import until

ROOT = Path(__file__).parents[2]
PATIENCE_S = 5
FAST_S, SLOW_S = 0.0, 0.2  # for a photo

PROGRAM = """
import sys, time, numpy as np, torch
from datetime import timedelta
from models import distributed
from models.networks.inputs import Features
from models.networks.predict import score
from models.recipe.config import Member
from tests.recording_loss import plain_network

photos, seconds = int(sys.argv[1]), [float(each) for each in sys.argv[2:]]
distributed.PATIENCE = timedelta(seconds=PATIENCE_S)

class Slow(Features):
    def evaluation(self, part):
        for row in self.rows[part].split(1):
            time.sleep(seconds[distributed.rank()])
            print("a photo", flush=True)
            yield self._read(torch.zeros_like(row), row)

with distributed.workers():
    network = plain_network(Member(size=32), num_classes=3)
    inputs = Slow(torch.randn(2, photos, 32), network.head)
    scores = score(network, inputs, ids=np.arange(photos).astype(str).astype(object), target=np.zeros(photos, np.int64))
    print(f"scored {len(scores)}", flush=True)
"""


@dataclass
class Pair:
    """Two workers that share a pass, as torchrun would start them."""

    folder: Path
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, photos: int, *seconds: float) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        program = PROGRAM.replace("PATIENCE_S", str(PATIENCE_S))
        for rank in range(2):
            variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1",
                         "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": 1, "PYTHONPATH": ROOT}  # fmt: skip
            command = [sys.executable, "-c", program, str(photos), *map(str, seconds)]
            with (self.folder / f"{rank}.log").open("wb") as log:
                env = os.environ | {name: str(value) for name, value in variables.items()}
                self.workers.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=env))

    def said(self, rank: int) -> str:
        return (self.folder / f"{rank}.log").read_text(errors="replace")

    def is_scoring(self) -> bool:
        return all("a photo" in self.said(rank) for rank in range(2))


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    both = Pair(tmp_path)
    yield both
    for worker in both.workers:
        worker.kill()
        worker.wait()


@pytest.mark.faults
@pytest.mark.parametrize(("ending", "own_s"), [(signal.SIGSTOP, SLOW_S), (signal.SIGKILL, FAST_S)],
                         ids=["silent while the other scores", "killed while the other waits"])  # fmt: skip
def test_a_lost_worker_ends_the_other_long_before_the_pass_is_over(
    pair: Pair, ending: signal.Signals, own_s: float
) -> None:
    pair.start(2000, own_s, SLOW_S)  # 1,000 photos each
    assert until(pair.is_scoring, timeout_s=60), pair.said(0)
    pair.workers[1].send_signal(ending)
    assert pair.workers[0].wait(timeout=60) == 1  # the pass would take minutes
    assert "WorkerLost: another worker ended, or its machine no longer answers; " in pair.said(0)


@pytest.mark.slow
def test_a_slow_worker_is_waited_for(pair: Pair) -> None:
    pair.start(80, FAST_S, SLOW_S)  # 8 s, which is more than a lost one is given
    assert [worker.wait(timeout=90) for worker in pair.workers] == [0, 0], pair.said(0)
    assert all("scored 80" in pair.said(rank) for rank in range(2))
