from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from serving.server import process
from serving.server.server import LocalServer, RunningServer, running, shared_memory_prefix

SLEEP = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)"]


@pytest.fixture
def inherited() -> int:
    """Pipe that child processes inherit, as that of a waiting caller."""
    ends = os.pipe()
    os.set_inheritable(ends[1], True)
    yield ends[1]
    for end in ends:
        os.close(end)


@pytest.fixture
def sleeper(tmp_path: Path) -> int:
    pid = process.spawn(SLEEP, variables=os.environ, log=tmp_path / "log")
    yield pid
    process.kill([pid])


def record(state: Path, pid: int, born: str) -> RunningServer:
    server = RunningServer(pid, born, "repository", 1, 2, 3, str(state))
    (state / "triton.json").write_text(json.dumps(asdict(server)))
    return server


def test_a_spawned_process_stands_alone(inherited: int, sleeper: int, tmp_path: Path) -> None:
    assert process.until(lambda: "here" in (tmp_path / "log").read_text(), timeout_s=10)
    assert os.getsid(sleeper) == sleeper
    links = {os.readlink(f"/proc/{sleeper}/fd/{number}") for number in os.listdir(f"/proc/{sleeper}/fd")}
    assert links == {"/dev/null", str(tmp_path / "log")}


def test_birth_tells_processes_apart(sleeper: int) -> None:
    born = process.birth(sleeper)
    assert born
    assert born == process.birth(sleeper) != process.birth(os.getpid())
    os.kill(sleeper, signal.SIGKILL)
    assert process.until(lambda: process.birth(sleeper) is None, timeout_s=10)


def test_end_spares_another_process_of_the_same_number(sleeper: int) -> None:
    process.end(sleeper, born="another boot:1", grace_s=0)
    assert process.birth(sleeper)
    process.end(sleeper, born=str(process.birth(sleeper)), grace_s=10)
    assert process.birth(sleeper) is None


def test_end_kills_what_will_not_stop(tmp_path: Path) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    pid = process.spawn([sys.executable, "-c", deaf], variables=os.environ, log=tmp_path / "log")
    assert process.until(lambda: "deaf" in (tmp_path / "log").read_text(), timeout_s=10)
    process.end(pid, born=str(process.birth(pid)), grace_s=0.2)
    assert process.birth(pid) is None


def test_running_believes_only_the_same_process(sleeper: int, tmp_path: Path) -> None:
    assert running(tmp_path) is None
    server = record(tmp_path, sleeper, str(process.birth(sleeper)))
    assert running(tmp_path) == server
    assert server.url == "127.0.0.1:2"
    record(tmp_path, sleeper, "another boot:1")
    assert running(tmp_path) is None
    assert not (tmp_path / "triton.json").exists()


@pytest.mark.faults
@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pid": 1, "unknown": 2}'])
def test_a_broken_state_file_is_repaired(tmp_path: Path, text: str) -> None:
    (tmp_path / "triton.json").write_text(text)
    assert running(tmp_path) is None
    assert not (tmp_path / "triton.json").exists()


def test_a_server_at_the_same_path_in_another_container_keeps_its_memory(tmp_path: Path) -> None:
    """Containers may share /dev/shm, and give their own workspaces the same path."""
    state = tmp_path / "state"
    state.mkdir()
    prefix = shared_memory_prefix(state)
    state.rename(tmp_path / "elsewhere")
    state.mkdir()
    theirs, ours = (Path("/dev/shm") / f"{name}test" for name in (prefix, shared_memory_prefix(state)))
    try:
        for region in (theirs, ours):
            region.touch()
        LocalServer(tmp_path / "repository", state, tmp_path / "none").stop()
        assert (theirs.exists(), ours.exists()) == (True, False)
    finally:
        theirs.unlink(missing_ok=True)
