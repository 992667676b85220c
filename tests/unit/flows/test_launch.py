"""A child process ends with its flow, however that ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import pytest

from flows.errors import ChildFailed, DiskFull, InputError
from flows.run import launch
from flows.run.launch import end_children, run_child
from serving.server.process import birth, until
from tests.surroundings import own_packages

pytestmark = pytest.mark.faults

# timeit stands for a training: a module that runs a statement.
SLEEPER = ("timeit", ["-n", "1", "-r", "1", "import os, time; print(os.getpid(), flush=True); time.sleep(100)"])
# one write to the pipe that both workers share: print makes several, and their lines would mix
SHARED = "import os, time; os.write(1, (os.environ['RANK'] + f' {os.getpid()}' + chr(10)).encode()); time.sleep(100)"
FLOW = f"from flows.run.launch import run_child; run_child(*{SLEEPER}, say=lambda line: print(line, flush=True))"

# what a training does when it is asked to end: it saves its checkpoint, which takes a moment
SAVES = (
    "import os, signal, sys, time; saved = lambda *_: (time.sleep(.3), os.write(1, b'saved' + bytes([10])), os._exit(143));"
    "signal.signal(signal.SIGTERM, saved); os.write(1, b'begun' + bytes([10])); time.sleep(100)"
)
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SHARED


@pytest.fixture
def in_a_folder_of_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with packages of the user's that are called as ours; PYTHONPATH names it too."""
    theirs = own_packages(tmp_path)
    monkeypatch.chdir(theirs)
    monkeypatch.setenv("PYTHONPATH", str(theirs))
    return theirs


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
    lines: Queue[str] = Queue()
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(run_child, *SLEEPER, say=lines.put) for _ in range(2)]
        for _ in running:
            lines.get(timeout=20)
        end_children()
        for each in running:
            assert isinstance(each.exception(timeout=20), ChildFailed)
            assert "killed by signal 15" in str(each.exception()), "it was asked to end"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_training_is_asked_to_end_and_saves_its_checkpoint(workers: int) -> None:
    lines: Queue[str] = Queue()
    with ThreadPoolExecutor() as pool:
        running = pool.submit(run_child, "timeit", ["-n", "1", "-r", "1", SAVES], say=lines.put, workers=workers)
        assert [lines.get(timeout=60) for _ in range(workers)] == ["begun"] * workers
        end_children()
        assert "ended with code 143" in str(running.exception(timeout=20))
    assert [lines.get(timeout=1) for _ in range(workers)] == ["saved"] * workers
    assert lines.empty(), "it does not start again"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_child_that_does_not_end_is_killed_after_a_while(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "GRACE_S", 0.5)
    lines: Queue[str] = Queue()
    deaf = DEAF if workers > 1 else DEAF.replace("os.environ['RANK']", "'0'")
    with ThreadPoolExecutor() as pool:
        running = pool.submit(run_child, "timeit", ["-n", "1", "-r", "1", deaf], say=lines.put, workers=workers)
        born = {pid: birth(pid) for pid in (int(lines.get(timeout=60).split()[1]) for _ in range(workers))}
        end_children()
        assert isinstance(running.exception(timeout=20), ChildFailed)
    assert all(birth(pid) != at for pid, at in born.items())


def test_no_child_starts_while_the_others_end() -> None:
    """A thread whose child has ended takes up the next training of its flow."""
    lines: Queue[str] = Queue()
    with ThreadPoolExecutor(max_workers=2) as pool:
        running = [pool.submit(run_child, *each, say=lines.put) for each in
                   [("timeit", ["-n", "1", "-r", "1", SAVES]), SLEEPER, SLEEPER]]  # fmt: skip
        for _ in range(2):
            lines.get(timeout=20)
        end_children()
        assert "did not start: the flow is ending" in str(running[2].exception(timeout=20))


def test_a_child_gets_its_arguments_and_passes_on_its_lines(in_a_folder_of_packages: Path) -> None:
    lines: list[str] = []
    statement = "import sys; print(sys.argv[0]); print(sys.argv[-1][-5:])  # last"
    run_child("timeit", ["-n", "1", "-r", "1", statement], say=lines.append)
    assert Path(lines[0]).name == "timeit.py", "as with python -m"
    assert lines[1] == " last"
    assert not (in_a_folder_of_packages / "ran").exists()


@pytest.mark.parametrize("module", ["models.training.command", "pixels", "contract", "durable", "random"])
def test_a_child_imports_nothing_from_the_current_folder(in_a_folder_of_packages: Path, module: str) -> None:
    lines: list[str] = []
    run_child("inspect", [module, "--details"], say=lines.append)
    [origin] = [Path(line.removeprefix("Origin: ")) for line in lines if line.startswith("Origin: ")]
    assert in_a_folder_of_packages not in origin.parents
    assert not (in_a_folder_of_packages / "ran").exists()


def test_an_interrupted_flow_ends_all_workers_of_a_child() -> None:
    lines: Queue[str] = Queue()
    with ThreadPoolExecutor() as pool:
        running = pool.submit(run_child, "timeit", ["-n", "1", "-r", "1", SHARED], say=lines.put, workers=2)
        found = dict(lines.get(timeout=60).split() for _ in range(2))
        assert set(found) == {"0", "1"}
        born = {int(pid): birth(int(pid)) for pid in found.values()}
        assert None not in born.values()
        end_children()
        assert isinstance(running.exception(timeout=20), ChildFailed)
    assert all(birth(pid) != at for pid, at in born.items()), "none is left when run_child returns"


def test_a_killed_flow_takes_all_workers_of_a_child_along() -> None:
    arguments = ("timeit", ["-n", "1", "-r", "1", SHARED])
    say = "say=lambda line: print(line, flush=True)"
    flow_of_two = f"from flows.run.launch import run_child; run_child(*{arguments}, {say}, workers=2)"
    command = [sys.executable, "-c", flow_of_two]
    with subprocess.Popen(command, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, text=True) as flow:
        assert flow.stdout is not None
        born = {pid: birth(pid) for pid in (int(flow.stdout.readline().split()[1]) for _ in range(2))}
        assert None not in born.values()
        flow.send_signal(signal.SIGKILL)
    assert until(lambda: all(birth(pid) != at for pid, at in born.items()), timeout_s=10)


def test_a_refusal_by_a_worker_is_that_of_a_single_process(in_a_folder_of_packages: Path) -> None:
    refusing = "import os; os.write(1, b'recipe.json: no such key' + bytes([10])); os._exit(65)"
    with pytest.raises(InputError, match=r"^recipe\.json: no such key$"):
        run_child("timeit", ["-n", "1", "-r", "1", refusing], say=lambda line: None, workers=2)
    with pytest.raises(ChildFailed, match=r"timeit ended with code 3; its last lines"):
        run_child("timeit", ["-n", "1", "-r", "1", "import os; os._exit(3)"], say=lambda line: None, workers=2)
    assert not (in_a_folder_of_packages / "ran").exists()


RESTARTED = """
import os, signal, sys, time
from pathlib import Path

began = Path(sys.argv[1]) / f"{os.environ['RANK']}"
first = not began.exists()
began.touch()
os.write(1, b"begun" + bytes([10]))
while not all((began.parent / rank).exists() for rank in "01"):
    time.sleep(.01)  # on a busy machine the other may start seconds later
if os.environ["RANK"] == "1" and (first or sys.argv[2] == "always"):
    time.sleep(.3)
    os.kill(os.getpid(), signal.SIGKILL)
if first:
    time.sleep(.3)
    sys.exit("connection closed by the other") if sys.argv[2] == "once" else time.sleep(100)
"""


@pytest.mark.parametrize("how", ["once", "always"])
def test_workers_start_once_more_when_one_was_killed(how: str, tmp_path: Path) -> None:
    """The kernel kills for memory in this way. The other fails in the same moment, or waits."""
    lines: list[str] = []
    (tmp_path / "killed.py").write_text(RESTARTED)
    arguments = ["-n", "1", "-r", "1", f"import runpy, sys; sys.argv = ['', {str(tmp_path)!r}, {how!r}]; "
                 f"runpy.run_path({str(tmp_path / 'killed.py')!r})"]  # fmt: skip
    if how == "once":
        run_child("timeit", arguments, say=lines.append, workers=2)
    else:
        with pytest.raises(
            ChildFailed, match=r"(?s)ended with code 137; .*a worker was killed by signal 9; all ended$"
        ):
            run_child("timeit", arguments, say=lines.append, workers=2)
    assert "a worker was killed by signal 9; all start again, from their checkpoint" in lines
    assert lines.count("begun") == 4


def test_workers_do_not_repeat_an_error() -> None:
    lines: list[str] = []
    failing = "import os, time; os.write(1, b'begun' + bytes([10])); time.sleep(.3) or 1 / (os.environ['RANK'] == '0')"
    with pytest.raises(ChildFailed, match="ended with code 1; its last lines"):
        run_child("timeit", ["-n", "1", "-r", "1", failing], say=lines.append, workers=2)
    assert lines.count("begun") == 2


SHARED_WORK = """
import os, torch
from models import distributed
from models.errors import ManifestError, ParityError
from models.training.command import run

def main():
    with distributed.workers():
        if distributed.rank() == FAILS:
            raise ERROR
        while True:
            WAIT

try:
    run(main)
except SystemExit as refused:  # timeit would take it for an error
    os._exit(refused.code)
"""


@pytest.mark.parametrize(
    ("fails", "error", "wait", "raised", "message"),
    [
        (0, "ParityError('the graph differs')", "distributed.barrier()", ChildFailed, r"ParityError: the graph differs$"),
        (1, "ManifestError('3 photos are broken')", "distributed.summed(torch.ones(1))", InputError,
         "^3 photos are broken$"),
        (0, "OSError(28, 'No space')", "distributed.check()", DiskFull, "^no space left on the device"),
    ],
    ids=["others wait at a barrier", "others add up", "others compute"],
)  # fmt: skip
def test_the_error_of_one_worker_is_told_and_not_that_the_others_lost_it(
    fails: int, error: str, wait: str, raised: type[Exception], message: str
) -> None:
    work = SHARED_WORK.replace("FAILS", str(fails)).replace("ERROR", error).replace("WAIT", wait)
    with pytest.raises(raised, match=message):
        run_child("timeit", ["-n", "1", "-r", "1", work], say=lambda line: None, workers=2)
