"""A child process ends with its flow, however that ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import pytest

from flows.errors import ChildFailed
from flows.launch import end_children, run_child
from serving.process import birth, until

pytestmark = pytest.mark.faults

# timeit stands for a training: a module that runs a statement.
SLEEPER = ("timeit", ["-n", "1", "-r", "1", "import os, time; print(os.getpid(), flush=True); time.sleep(100)"])
FLOW = f"from flows.launch import run_child; run_child(*{SLEEPER}, say=lambda line: print(line, flush=True))"


def test_a_killed_flow_takes_its_children_along() -> None:
    command = [sys.executable, "-c", FLOW]
    with subprocess.Popen(command, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, text=True) as flow:
        assert flow.stdout is not None
        child = int(flow.stdout.readline())
        born = birth(child)
        assert born is not None
        flow.send_signal(signal.SIGKILL)
    assert until(lambda: birth(child) != born, timeout_s=10)


def test_an_interrupted_flow_ends_the_children_of_its_threads() -> None:
    said: Queue[str] = Queue()
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(run_child, *SLEEPER, say=said.put) for _ in range(2)]
        for _ in running:
            said.get(timeout=20)
        end_children()
        for each in running:
            assert isinstance(each.exception(timeout=20), ChildFailed)
            assert "killed by signal 9" in str(each.exception())


def test_a_child_gets_its_arguments_and_tells_its_lines() -> None:
    said: list[str] = []
    statement = "import sys; print(sys.argv[0]); print(sys.argv[-1][-5:])  # last"
    run_child("timeit", ["-n", "1", "-r", "1", statement], say=said.append)
    assert Path(said[0]).name == "timeit.py", "as with python -m"
    assert said[1] == " last"
