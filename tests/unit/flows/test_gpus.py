"""Each training has a GPU of its own, shown by a pretend list of GPUs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import pytest

from flows import doctor
from flows.errors import ChildFailed, InputError, WorldError
from flows.run import gpus, launch
from flows.run.gpus import Gpu, gpus_by_name
from flows.run.launch import end_children, run_child
from serving.server.process import birth, until
from tests.command_line import ROOT
from tests.pretend_gpus import pretend

TWO = [("aaaa", "NVIDIA H200"), ("bbbb", "NVIDIA H200")]
# one write to the pipe: print makes several, and the lines of several children would mix
SHOW = "import os, time; os.write(1, (os.environ['CUDA_VISIBLE_DEVICES'] + f' {os.getpid()}' + chr(10)).encode())"
SHOWS = ("timeit", ["-n", "1", "-r", "1", SHOW])
HOLDS = ("timeit", ["-n", "1", "-r", "1", f"{SHOW}; time.sleep(100)"])


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for module in (gpus, launch):
        monkeypatch.setattr(module, "visible_gpus", pretend(2))


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (None, ["0", "1"]),
        ("1,0", ["1", "0"]),
        ("3, 2", ["3", "2"]),
        ("0,1,-1,2", ["0", "1"]),
        ("GPU-bbbb,GPU-aaaa", ["GPU-bbbb", "GPU-aaaa"]),
    ],
)
def test_gpus_are_called_as_the_variable_calls_them(value: str | None, names: list[str]) -> None:
    found = gpus_by_name(value, TWO)
    assert [gpu.name for gpu in found] == names
    assert [gpu.uuid for gpu in found] == ["aaaa", "bbbb"]


@pytest.mark.parametrize("value", ["-1", "NoDevFiles", "0,0", "none"])
def test_no_gpu_is_named_if_cuda_finds_none(value: str) -> None:
    assert gpus_by_name(value, []) == ()


def test_every_named_mig_device_counts_though_cuda_takes_the_first() -> None:
    expected = (Gpu("MIG-a", "MIG-a", "NVIDIA H200 MIG 1g.18gb"), Gpu("MIG-b", "MIG-b", "NVIDIA H200 MIG 1g.18gb"))
    assert gpus_by_name("MIG-a,MIG-b,7", [("cccc", "NVIDIA H200 MIG 1g.18gb")]) == expected


def test_torch_is_asked_in_a_process_of_its_own() -> None:
    assert json.loads(json.dumps(gpus._usable())) == gpus._usable()
    script = "import sys, flows.run.launch; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_driver_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "ANSWER_TIMEOUT_S", 0.001)
    with pytest.raises(WorldError, match=r"^the driver of the GPUs does not answer \(.+\); repair it, or train on"):
        gpus._usable()


def test_trainings_side_by_side_have_gpus_of_their_own_and_the_third_waits(two_gpus: None) -> None:
    lines: Queue[str] = Queue()
    with ThreadPoolExecutor() as pool:
        first = [pool.submit(run_child, *HOLDS, say=lines.put, on_gpu=True) for _ in range(2)]
        shown = dict(lines.get(timeout=20).split() for _ in first)
        assert set(shown) == {"0", "1"}
        third = pool.submit(run_child, *HOLDS, say=lines.put, on_gpu=True)
        assert lines.get(timeout=20) == "waiting for 1 of 2 GPUs, which other trainings use"
        subprocess.run(["kill", "-KILL", shown["1"]], check=True)
        assert lines.get(timeout=20).split()[0] == "1", "the kernel has freed it"
        end_children()
        assert all(isinstance(each.exception(timeout=20), ChildFailed) for each in (*first, third))


def test_a_training_of_two_processes_has_two_gpus(two_gpus: None) -> None:
    lines: list[str] = []
    run_child(*SHOWS, say=lines.append, on_gpu=True, workers=2)
    assert len([line for line in lines if line.startswith("0,1 ")]) == 2, "of which each process takes its own"
    with pytest.raises(InputError, match=r"^train\.workers: 3 processes need a GPU each, but this machine shows 2; "):
        run_child(*SHOWS, say=lines.append, on_gpu=True, workers=3)


def test_a_child_that_needs_no_gpu_waits_for_none(two_gpus: None) -> None:
    lines: Queue[str] = Queue()
    with ThreadPoolExecutor() as pool:
        both = pool.submit(run_child, *HOLDS, say=lines.put, on_gpu=True, workers=2)
        lines.get(timeout=30)
        run_child("timeit", ["-n", "1", "-r", "1", "pass"], say=lambda line: None)
        end_children()
        assert isinstance(both.exception(timeout=20), ChildFailed)


def test_a_killed_flow_frees_its_gpus(two_gpus: None) -> None:
    """Two flows, as of two workspaces, share the GPUs of their user."""
    script = (
        f"from flows.run import gpus, launch; from flows.run.gpus import Gpu; gpus.visible_gpus = launch.visible_gpus"
        f" = lambda: {pretend(2)()}; launch.run_child(*{HOLDS}, say=lambda line: print(line, flush=True), on_gpu=True,"
        " workers=2)"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as flow:
        assert flow.stdout is not None
        born = {pid: birth(pid) for pid in (int(flow.stdout.readline().split()[1]) for _ in range(2))}
        lines: Queue[str] = Queue()
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(run_child, *SHOWS, say=lines.put, on_gpu=True)
            assert lines.get(timeout=20).startswith("waiting for 1 of 2")
            flow.send_signal(signal.SIGKILL)
            assert lines.get(timeout=20).split()[0] == "0"
            waiting.result(timeout=20)
    assert until(lambda: all(birth(pid) != at for pid, at in born.items()), timeout_s=10)


def test_a_child_that_waits_for_a_gpu_ends_with_the_others(two_gpus: None) -> None:
    lines: Queue[str] = Queue()
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(run_child, *HOLDS, say=lines.put, on_gpu=True) for _ in range(3)]
        assert "waiting for 1 of 2 GPUs, which other trainings use" in [lines.get(timeout=20) for _ in range(3)]
        end_children()
        assert all(isinstance(each.exception(timeout=20), ChildFailed) for each in running)


def test_locks_of_another_user_are_refused(two_gpus: None, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / f"cleanshelf-{launch.os.getuid()}").symlink_to(elsewhere)
    with pytest.raises(InputError, match=r"belongs to another user; remove it, or set TMPDIR"):
        run_child(*SHOWS, say=lambda line: None, on_gpu=True)


def test_children_are_told_how_many_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    tells = ("timeit", ["-n", "1", "-r", "1", "import os; print(os.environ['CLEANSHELF_SIDE_BY_SIDE'])"])
    run_child(*tells, say=lines.append, side_by_side=3)
    monkeypatch.setenv("CLEANSHELF_SIDE_BY_SIDE", "8")
    run_child(*tells, say=lines.append, side_by_side=3)
    assert [lines[0], lines[2]] == ["3", "8"], "the user's own number counts"


def test_doctor_names_the_gpus_or_says_why_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(doctor, "visible_gpus", pretend(2))
    assert doctor.gpus() == "2 that torch can use: 0 (pretend GPU), 1 (pretend GPU)"
    monkeypatch.setattr(doctor, "visible_gpus", pretend(0))
    monkeypatch.setattr(doctor, "has_driver", lambda: False)
    assert doctor.gpus().startswith("none; training runs on ")
    monkeypatch.setattr(doctor, "has_driver", lambda: True)
    with pytest.raises(WorldError, match=r"^a driver is installed, but torch can use no GPU; "):
        doctor.gpus()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert doctor.gpus().startswith("none; "), "it is hidden"
